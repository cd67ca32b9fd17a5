"""Times decoding with DDIM: z and x_T to image.

python -m benchmarks.sampling --config=ffhq128 --steps 10 20 50 100 --batches 1 16 256

A row that would take longer than --limit is left out.
"""

import sys
from collections.abc import Iterator

from benchmarks.measure import Measurement, measure, parser, read, show


def main() -> None:
    """Prints a row for each config, batch size and number of steps."""
    flags = parser(__doc__)
    flags.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50, 100], help="steps of the sampler")
    flags.add_argument("--batches", nargs="+", type=int, default=[1, 16, 256], help="images in a call")
    flags.add_argument("--limit", type=float, default=60, help="seconds that a call may take (default: 60)")
    arguments, configs = read(flags)

    def rows() -> Iterator[Measurement]:
        for name, config in configs.items():
            seconds_per_step = 0.0  # of an image, at most
            for batch in sorted(arguments.batches):
                for steps in sorted(arguments.steps):
                    expected = seconds_per_step * batch * steps
                    if expected > arguments.limit:
                        print(f"{name}, {batch} images, {steps} steps: left out, {expected:.0f} s", file=sys.stderr)
                        continue
                    config.evaluation.num_code_steps = steps
                    row = measure(name, config, "decode", arguments.seconds, batch=batch)
                    seconds_per_step = row.median / batch / steps
                    yield row

    show(rows(), arguments.json)


if __name__ == "__main__":
    main()
