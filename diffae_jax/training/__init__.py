"""Training: state, step, compiled program, loop, checkpoints, loss scale, health and metrics."""
