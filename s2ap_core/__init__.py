"""The S2AP pruner: everything that produces a mask."""

__version__ = "0.1.0"
