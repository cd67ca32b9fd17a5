"""Training alone: state, step, program, loop, checkpoints, loss scale, health and metrics. Knows no data set."""
