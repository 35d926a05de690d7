"""Ratios of time and memory, measured on the machine at hand: ``python -m benchmarks``, see README.md.

A benchmark joins with one file and one line in :data:`benchmarks.suite.BENCHMARKS`.
"""
