"""Trains a diffusion autoencoder: python -m diffae_jax.main --config=configs/digits.py"""

import atexit
import gc
import os
import signal
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from diffae_jax.runtime.errors import UserError

DEFAULT_CONFIG = "configs/digits.py"
CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"The experiment, by default {DEFAULT_CONFIG}; change single keys with --config.KEY=VALUE."
)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config.name>.")
STAGES = flags.DEFINE_list(
    "stages", None, "The stages to run, by default all: autoencoder,latents,prior,probes,evaluation,export."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process, to run several where no cluster is found by itself."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes take part; with --coordinator.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this process from 0; with --coordinator.")


def main(argv: list[str]) -> None:
    """Joins the cluster, if there is one, and runs the stages."""
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} was not understood: every argument is a flag, such as --config={argv[1]}.")
    from diffae_jax.runtime.cluster import join_cluster

    # before the modules below, so that nothing can ask for devices first
    join_cluster(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    from diffae_jax.runtime.console import say
    from diffae_jax.stages.chain import run_stages
    from diffae_jax.training.loop import Stopped

    try:
        run_stages(CONFIG.value, WORKDIR.value, STAGES.value)
    except Stopped as stopped:
        name = signal.Signals(stopped.signal_number).name
        say(f"\n{name}: saved step {stopped.step:,}. Run the same command again to go on.")
        sys.exit(128 + stopped.signal_number)


def parse(argv: list[str]) -> list[str]:
    """Reads the flags and the config file. Raises UserError for what is wrong with them."""
    if not any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    try:
        arguments = flags.FLAGS(argv)
        _ = CONFIG.value.name  # raises what kept the file from being read
        return arguments
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if inner := _user_error_behind(error):
            raise inner from None
        reason = " ".join(str(error.args[-1] if isinstance(error, KeyError) else error).split()).rstrip(".")
        raise UserError(f"The flags or the config file they name are not right: {reason}.") from error


def _user_error_behind(error: BaseException | None) -> UserError | None:
    """Returns the first UserError that led to an error: the flags put a traceback around that of a config file."""
    found = None
    while error is not None:
        found = error if isinstance(error, UserError) else found
        error = error.__context__
    return found


def run() -> None:
    """Runs main and tells a user's mistakes in one sentence: exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes of its inner life
    # before jax registers its own, so after them: Python would look through all objects once more, which takes a second
    # or, where processes share a core, five of those that a signal leaves
    atexit.register(gc.freeze)
    logging.set_verbosity(logging.WARNING)
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        print("\nInterrupted; what was saved is good. Run the same command again to go on.", flush=True)
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
        print(f"\nError: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
