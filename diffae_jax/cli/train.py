"""diffae train, the same as python -m diffae_jax.main: trains a diffusion autoencoder.

Its flags are parsed by absl and ml_collections, because each of the many config keys is a flag.
"""

import argparse
import ast
import difflib
import faulthandler
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import unforeseen
from diffae_jax.runtime.interrupts import RESUME, Interruptible, Stopped, end_process, stuck
from diffae_jax.runtime.logs import log_to_stderr, quiet_libraries
from diffae_jax.runtime.process import prepare_command, standard_streams

if TYPE_CHECKING:
    from absl.flags import FlagValues

HELP = "train a model; the same command again resumes the run"
EXAMPLES = (
    "--config=digits",
    "--config=images --config.data.path=photos --config.name=mine",
    "--config=ffhq128 --init=ffhq128 --config.data.path=portraits --config.name=portraits",
    "--config=ffhq128:ddim --config.data.path=faces --config.train.batch_size=64 --workdir=runs/baseline",
)
DEFAULT_CONFIG = "digits"
DEFAULT_CLUSTER_TIMEOUT = 120  # seconds
INTERRUPTED = "stopped between two stages, and finished stages are kept. " + RESUME
USAGE = f"""\
usage: diffae train [--config=CONFIG] [--config.KEY=VALUE ...] [--workdir=FOLDER] [--stages=STAGE,...]

Trains, evaluates and exports a diffusion autoencoder. The same command again resumes the run.
python -m diffae_jax.main is the same command.

flags:
  --config=CONFIG          the experiment: a config listed below, or a Python file with get_config; CONFIG:ddim is the
                           baseline without z, CONFIG:z64 has a z of 64 dimensions; default: {DEFAULT_CONFIG}
  --config.KEY=VALUE       overrides one key, such as --config.train.batch_size=64; --helpfull lists all keys
  --workdir=FOLDER         the run folder, also gs://BUCKET/NAME or s3://BUCKET/NAME; default: runs/<config.name>
  --stages=STAGE,...       some of autoencoder,latents,prior,probes,evaluation,export; default: all
  --init=MODEL             starts from the weights of a bundle or a run folder, where their shapes fit
  --branch=NAME            continues the run in a new run folder next to it, with changed keys
  --coordinator=HOST:PORT  address of the first process; needed for several processes if no cluster is detected
  --num_processes=N        number of processes; with --coordinator
  --process_id=N           number of this process, starting at 0; with --coordinator
  --cluster_timeout=N      seconds to wait for the other processes at the start; default: {DEFAULT_CLUSTER_TIMEOUT}
  --dry_run                does not train, but prints what training needs on this machine, or on --target
  --target=MACHINE         with --dry_run: a machine that need not be there, such as v100x8 or v5e-16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing, because `run` parses the flags."""


def run(argv: list[str] | None = None) -> None:
    """Trains a model. A UserError is printed without a traceback; its exit code is used."""
    is_own_process = "jax" not in sys.modules  # not a notebook, which decides about its devices
    prepare_command()
    if not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)  # prints a traceback if compiled code crashes
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # configs may import code from this folder, as with python -m
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with standard_streams():
            if help_flags := {"-h", "-help", "--help", "--helpshort", "--helpfull"}.intersection(arguments):
                print(help_text(all_keys="--helpfull" in help_flags))
                return
            with quiet_libraries(), log_to_stderr(), Interruptible(INTERRUPTED) as interruptible:
                train(parse(arguments), interruptible, is_own_process=is_own_process)
    except UserError as error:
        _end(error)
    except OSError as error:
        _end(unforeseen(error))


def _end(error: UserError) -> None:
    print(f"\nError: {error}", file=sys.stderr, flush=True)
    if stuck.is_set():
        end_process(error.exit_code)
    sys.exit(error.exit_code)


def parse(arguments: list[str]) -> "FlagValues":
    """Parses the flags and reads the config.

    Returns the values of the flags; `config` is the config with its overrides. Raises UserError if
    a flag is invalid.
    """
    from absl import flags
    from ml_collections import config_flags

    from diffae_jax.config import from_file

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_list("stages", None, "", flag_values=values)
    flags.DEFINE_string("init", None, "", flag_values=values)
    flags.DEFINE_string("branch", None, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "", flag_values=values)
    flags.DEFINE_integer("process_id", None, "", flag_values=values)
    flags.DEFINE_boolean("dry_run", False, "", flag_values=values)
    flags.DEFINE_string("target", None, "", flag_values=values)
    flags.DEFINE_integer("cluster_timeout", DEFAULT_CLUSTER_TIMEOUT, "", flag_values=values)
    file, others = take_config(arguments)
    config = from_file(file)
    argv = ["diffae train", *others]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"The flags are invalid: {_reason(error, others)}. Use --help for a list of flags.") from error
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: every argument must be a flag, such as --config={rest[0]}.")
    return values


def _reason(error: Exception, arguments: list[str]) -> str:
    """Returns what is wrong with the flags, with the full name of an unknown key."""
    from diffae_jax.config.keys import FLAT_KEYS

    names = [argument.partition("=")[0].removeprefix("--") for argument in arguments]
    keys = [name.removeprefix("config.") for name in names if name.startswith("config.")]
    unknown = next((key for key in keys if key not in FLAT_KEYS), "")
    if unknown and isinstance(error, KeyError | AttributeError):
        close = difflib.get_close_matches(unknown, FLAT_KEYS, 1)
        return f"there is no key {shown(unknown)}" + f" (did you mean {close[0]}?)" * bool(close)
    reason = " ".join(str(error.args[-1] if isinstance(error, KeyError) else error).split()).rstrip(".")
    mistaken = next((name for name in names if name in FLAT_KEYS), "")
    return reason + f" (did you mean --config.{mistaken}?)" * (f"'{mistaken}'" in reason)


def take_config(arguments: list[str]) -> tuple[str, list[str]]:
    """Returns the last value of --config and the remaining arguments."""
    config, others, rest = DEFAULT_CONFIG, [], iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            config = value if equals else next(rest, "")
        else:
            others.append(argument)
    return config, others


def train(values: "FlagValues", interruptible: Interruptible, *, is_own_process: bool) -> None:
    """Joins a cluster, if there is one, and runs the stages. A dry run prints a plan instead."""
    if values.dry_run or values.target is not None:
        from diffae_jax.cli.plan import plan

        if not values.dry_run:
            raise UserError("--target needs --dry_run: training uses the devices that are there.")
        plan(values.config, values.target)
        return
    import jax

    from diffae_jax.config import check
    from diffae_jax.runtime.cluster import joined_cluster, on_cluster
    from diffae_jax.runtime.console import say
    from diffae_jax.runtime.cpu import use_all_cores
    from diffae_jax.stages.chain import run_stages
    from diffae_jax.stages.run_folder import saved_steps, workdir_of

    def saved() -> str:
        return saved_steps(workdir_of(values.workdir, values.config, values.branch))

    processes = values.coordinator, values.num_processes, values.process_id
    if is_own_process and values.num_processes is None and not on_cluster():
        check(values.config)
        use_all_cores(values.config)
    # no code may look for devices before the process has joined the cluster
    with joined_cluster(*processes, values.cluster_timeout, saved):
        interruptible.joined_cluster(jax.process_count())
        try:
            run_stages(values.config, values.workdir, values.stages, init=values.init, branch=values.branch)
        except Stopped as stopped:
            name = signal.Signals(stopped.signal_number).name
            say(f"\n{name}: training stopped, and step {stopped.step:,} is saved.", RESUME)
            sys.exit(128 + stopped.signal_number)


def help_text(*, all_keys: bool) -> str:
    """Returns the help: flags, configs of the package, examples and, with `all_keys`, all keys."""
    from diffae_jax.config import packaged_configs
    from diffae_jax.config.listing import as_text

    configs = {name: ast.get_docstring(ast.parse(path.read_text())) for name, path in packaged_configs().items()}
    lines = [f"  {name:<14} {docstring.splitlines()[0]}" for name, docstring in configs.items()]
    examples = [f"  diffae train {example}" for example in EXAMPLES]
    keys = ["", "keys:", "", as_text()] if all_keys else []
    return "\n".join([USAGE, "configs:", *lines, "", "examples:", *examples, *keys])
