"""The diffusion process: schedule, loss, samplers and inversion, for any `network(x_t, t)`."""
