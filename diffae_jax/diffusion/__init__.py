"""The diffusion process: schedules, loss and samplers over arrays and `eps_fn(x_t, t)`. Knows no network."""
