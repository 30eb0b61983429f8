"""The SDK of a run: its folder, logs, checkpoints, evaluation, pictures and trackers, without any command line.

    from ddpo_core import runs

    config = runs.run_config({"reward": "my reward", "epochs": 8})
    for event in runs.train(config, reward_fn):
        if isinstance(event, runs.Epoch):
            print(event.info.epoch, event.info.metrics["reward_mean"])

The public names are listed once, in the stub beside this file, and loaded at first use, as those of `ddpo_core`.
"""

from ddpo_core.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(__name__)
