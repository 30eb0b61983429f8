"""One module per command: its options and help. The bodies live outside and are imported when a command runs."""
