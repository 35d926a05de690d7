"""Runs on disk: the directory, its checkpoints, and what a config implies for them."""
