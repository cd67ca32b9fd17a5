"""The diffusion process: schedule, loss, samplers and inversion, for any function `network(x_t, t)`."""
