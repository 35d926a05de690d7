"""Checkpoints that other tools wrote."""
