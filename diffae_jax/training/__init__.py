"""State, step, loop, sharding, checkpoints, precision, health and logs of a training run. Knows no data set."""
