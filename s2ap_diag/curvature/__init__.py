"""Curvature of the robust loss in score space."""
