"""The claims of the method, each by an experiment that can be run again: `python -m benchmarks.science --help`."""
