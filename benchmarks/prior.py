"""Times the training step of the prior (latent DDIM), with one and with ten steps in a call.

python -m benchmarks.prior --config=ffhq128
"""

from benchmarks.measure import measure, parser, read, show


def main() -> None:
    """Prints a row for each config and number of steps in a call."""
    flags = parser(__doc__)
    flags.add_argument("--steps", nargs="+", type=int, default=[1, 10], help="training steps in a call")
    arguments, configs = read(flags)

    def rows():
        for name, config in configs.items():
            for config.execution.steps_per_dispatch in arguments.steps:
                yield measure(name, config, "prior", arguments.seconds)

    show(rows(), arguments.json)


if __name__ == "__main__":
    main()
