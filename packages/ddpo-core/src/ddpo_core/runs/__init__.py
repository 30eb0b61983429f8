"""The SDK of a run: its folder, logs, checkpoints, evaluation, pictures and trackers, without any command line."""
