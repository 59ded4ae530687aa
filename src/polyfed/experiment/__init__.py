"""Experiment: one file, built, run, summed up and compared."""
