"""Read checkpoints, masks and finished runs."""
