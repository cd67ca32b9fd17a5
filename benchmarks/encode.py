"""Times encoding: image to z.

python -m benchmarks.encode --config=ffhq128 --batches 1 16 128
"""

from benchmarks.measure import measure, parser, read, show


def main() -> None:
    """Prints a row for each config and batch size."""
    flags = parser(__doc__)
    flags.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="images in a call")
    arguments, configs = read(flags)
    rows = (
        measure(name, config, "encode", arguments.seconds, batch=batch)
        for name, config in configs.items()
        for batch in arguments.batches
    )
    show(rows, arguments.json)


if __name__ == "__main__":
    main()
