"""Speed and memory of polyfed, beside a bare loop that runs in turns with it: ``python -m benchmarks --help``."""
