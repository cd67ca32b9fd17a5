"""Where images come from, and how they reach the devices in an order that is a function of (seed, step) alone."""
