"""A grid of runs: what to run (grid, plan), how one task runs (tasks), and who runs them (executors, schedule).

Measurements of many checkpoints (measurements) are spread over worker processes as well.
"""
