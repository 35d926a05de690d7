"""Masks by importance scores, and the layers that carry them."""
