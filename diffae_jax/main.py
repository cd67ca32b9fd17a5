"""Trains a diffusion autoencoder: python -m diffae_jax.main --config=configs/digits.py"""

import contextlib
import faulthandler
import io
import signal
import sys

from absl import flags, logging
from ml_collections import config_flags

from diffae_jax.runtime.errors import UserError
from diffae_jax.runtime.logs import notes_on_stderr, root_logger_kept
from diffae_jax.runtime.process import prepare_command

DEFAULT_CONFIG = "configs/digits.py"


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags in a set of their own, so that a second run in the process finds none of the first."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"The experiment, by default {DEFAULT_CONFIG}; change single keys with --config.KEY=VALUE.",
        flag_values=values,
        sys_argv=argv,
    )
    flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config.name>.", values)
    flags.DEFINE_list(
        "stages",
        None,
        "The stages to run, by default all: autoencoder,latents,prior,probes,evaluation,export.",
        values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of the first process, to run several where no cluster is found by itself.",
        values,
    )
    flags.DEFINE_integer("num_processes", None, "How many processes take part; with --coordinator.", flag_values=values)
    flags.DEFINE_integer(
        "process_id", None, "The number of this process from 0; with --coordinator.", flag_values=values
    )
    return values


def main(arguments: flags.FlagValues) -> None:
    """Joins the cluster, if there is one, and runs the stages."""
    from diffae_jax.runtime.cluster import join_cluster

    # before the modules below, so that nothing can ask for devices first
    join_cluster(arguments.coordinator, arguments.num_processes, arguments.process_id)
    from diffae_jax.runtime.console import say
    from diffae_jax.stages.chain import run_stages
    from diffae_jax.training.loop import Stopped

    try:
        run_stages(arguments.config, arguments.workdir, arguments.stages)
    except Stopped as stopped:
        name = signal.Signals(stopped.signal_number).name
        say(f"\n{name}: saved step {stopped.step:,}. Run the same command again to go on.")
        sys.exit(128 + stopped.signal_number)


def parse(argv: list[str]) -> flags.FlagValues:
    """Reads the flags and the config file. Raises UserError for what is wrong with them."""
    if not any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    arguments = define_flags(argv)
    try:
        rest = arguments(argv)
        _ = arguments.config.name  # raises what kept the file from being read
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if inner := _user_error_behind(error):
            raise inner from None
        reason = " ".join(str(error.args[-1] if isinstance(error, KeyError) else error).split()).rstrip(".")
        raise UserError(f"The flags or the config file they name are not right: {reason}.") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} was not understood: every argument is a flag, such as --config={rest[1]}.")
    return arguments


def _user_error_behind(error: BaseException | None) -> UserError | None:
    """Returns the first UserError that led to an error: the flags put a traceback around that of a config file."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__context__
    return found


def run(argv: list[str] | None = None) -> None:
    """Runs main with the arguments of the shell, or others, and tells a user's mistakes in one sentence: exit code 2.

    `argv` begins with the name of the program, as `sys.argv` does.
    """
    prepare_command()
    argv = sys.argv if argv is None else argv
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(f"{__doc__}\nflags:\n{define_flags(argv).get_help()}")
        return
    try:
        with root_logger_kept(), notes_on_stderr():
            logging.use_absl_handler()
            logging.set_verbosity(logging.WARNING)
            main(parse(argv))
    except KeyboardInterrupt:
        print("\nInterrupted; what was saved is good. Run the same command again to go on.", flush=True)
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        print(f"\nError: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    with contextlib.suppress(io.UnsupportedOperation):  # a stderr that is no file
        faulthandler.enable()
    run()
