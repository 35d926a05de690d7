"""Comparing arms: statistics over seeds, and the arms of finished runs side by side."""
