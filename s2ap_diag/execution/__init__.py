"""Run what a config asks for: resume, signals, log, progress, exit status."""
