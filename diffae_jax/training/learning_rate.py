"""The learning rate of each step: warm-up and schedule, as a factor on the one of the config."""

import optax
from jaxtyping import Array, Float


def learning_rate_factor(schedule: str, warmup: int, length: int, batch_size: int) -> optax.Schedule | None:
    """Returns the factor on the learning rate as a function of the step.

    It depends on the samples seen, not on the state of the optimizer. So it continues where it was
    if a run resumes, and also if the batch size changes. A step has the factor at the middle of
    its batch, so that neither the first nor the last step is lost.

    Args:
        schedule: "constant", or "cosine": falls from 1 to 0 along half a cosine after the warm-up.
        warmup: Samples during which the factor rises from 0 to 1, linearly.
        length: Samples in the entire training; more than `warmup`.
        batch_size: Samples of a step.

    Returns:
        A function of the number of steps before this one, or None if the factor is always 1.
    """
    if schedule == "constant" and not warmup:
        return None
    after = optax.cosine_decay_schedule(1.0, length - warmup) if schedule == "cosine" else optax.constant_schedule(1.0)
    of_samples = optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup]) if warmup else after

    def factor(step: Array | int) -> Float[Array, ""]:
        return of_samples((step + 0.5) * batch_size)

    return factor
