"""Times the training step of the autoencoder.

python -m benchmarks.train_step --config=ffhq128
python -m benchmarks.train_step --config=ffhq64 --config.train.batch_size=4
"""

from benchmarks.measure import measure, parser, read, show


def main() -> None:
    """Prints a row for each config."""
    arguments, configs = read(parser(__doc__))
    rows = (measure(name, config, "train", arguments.seconds) for name, config in configs.items())
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
