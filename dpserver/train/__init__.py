"""Training: input file, data, statistics, loss, loop, learning curve and report."""
