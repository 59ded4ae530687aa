"""Speed, as ratios to a bare loop measured in the same run: ``python -m benchmarks``."""
