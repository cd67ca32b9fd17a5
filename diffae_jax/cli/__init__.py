"""The commands of `diffae`, one file each.

Each file has HELP, EXAMPLES, `add_arguments` and `run`. Commands call `DiffAE`, never a network.
Slow imports happen only in `run`, so help and wrong arguments are reported at once.
"""

import argparse
import contextlib
import sys

from diffae_jax.cli import (
    budget,
    data,
    demo,
    edit,
    encode,
    evaluate,
    import_,
    info,
    interpolate,
    plan,
    probe,
    push,
    reconstruct,
    sample,
    train,
)
from diffae_jax.cli.arguments import Parser, add_import
from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.files import unforeseen
from diffae_jax.runtime.interrupts import Interruptible
from diffae_jax.runtime.logs import log_to_stderr
from diffae_jax.runtime.own_code import import_own
from diffae_jax.runtime.process import prepare_command, standard_streams

COMMANDS = {
    "data": data,
    "train": train,
    "plan": plan,
    "info": info,
    "encode": encode,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "edit": edit,
    "sample": sample,
    "demo": demo,
    "probe": probe,
    "evaluate": evaluate,
    "budget": budget,
    "push": push,
    "import": import_,
}

INTERRUPTED = "stopped before the result was complete. Run the same command again."


def parser() -> argparse.ArgumentParser:
    """Returns the argument parser of all commands except `train`."""
    top = Parser(
        "diffae", description="Trains and uses diffusion autoencoders. Options of a command: diffae COMMAND --help"
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        lines = "\n".join(f"  diffae {name} {example}" for example in command.EXAMPLES)
        added = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=command.run)
        command.add_arguments(added)
    return top


def modules_to_import(argv: list[str]) -> list[str]:
    """Returns the modules of --import.

    They are imported before the arguments are parsed, because they may register a sampler.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_import(early)
    with contextlib.suppress(argparse.ArgumentError):  # the parser of the command reports it
        return early.parse_known_args(argv)[0].modules
    return []


def config_keys(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into others and flags of config keys, for commands that take these."""
    takes_keys = getattr(COMMANDS.get(argv[0]) if argv else None, "TAKES_KEYS", False)
    keys = [argument for argument in argv if takes_keys and argument.startswith("--config.")]
    return [argument for argument in argv if argument not in keys], keys


def run(argv: list[str] | None = None) -> None:
    """Runs a command. Prints a UserError on one line and exits with its code.

    SIGINT and SIGTERM end the process: see `runtime.interrupts`.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:  # `train` uses absl flags, not this parser
        train.run(argv[1:])
        return
    prepare_command()
    try:
        with standard_streams(), Interruptible(INTERRUPTED):
            for module in modules_to_import(argv):
                import_own(module)
            argv, keys = config_keys(argv)
            arguments = parser().parse_args(argv)
            arguments.overrides = keys
            with log_to_stderr():
                arguments.run(arguments)
    except (UserError, OSError) as error:  # OSError: such as a disk that became full
        problem = unforeseen(error) if isinstance(error, OSError) else error
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(problem.exit_code)
