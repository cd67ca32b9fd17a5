"""The diffusion process, its loss, samplers and inversion, over arrays and `network(x_t, t)`. Knows no network."""
