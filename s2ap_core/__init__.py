"""The S2AP pruner: everything that produces a mask."""
