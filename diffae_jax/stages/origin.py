"""What a run starts from: nothing, the weights of a model (--init), or another run (--branch).

`origin.json` in the run folder records it. A model is copied to `init/`, as a bundle, and the
state of another run becomes the first checkpoint. So a run that has begun needs neither any more.
"""

import contextlib
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffae_jax.config import check, from_json
from diffae_jax.config.differences import changes, flat, shapes_networks
from diffae_jax.inference.bundle import read_bundle
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.loading import ORIGIN, read_config, read_origin
from diffae_jax.inference.sharing import local_model
from diffae_jax.inference.weights import abstract_weights
from diffae_jax.models.functional import Params, flatten
from diffae_jax.pretrained import is_shipped
from diffae_jax.runtime.cluster import found_by_main_process, is_main_process, together
from diffae_jax.runtime.console import say
from diffae_jax.runtime.errors import UserError, shown
from diffae_jax.runtime.files import AnyPath, expand_home, os_errors_as_user_errors, write_json
from diffae_jax.runtime.hub import is_hub_address, parse_address
from diffae_jax.runtime.sharding import shard_array
from diffae_jax.stages.run_folder import is_begun
from diffae_jax.training.checkpoint import Checkpoints, find_undamaged, restore, steps_in
from diffae_jax.training.loop import Window
from diffae_jax.training.program import abstract_states
from diffae_jax.training.state import TrainState, make_optimizer

INIT = "init"
# keys that change what outputs mean or which block a weight is in, but not the shapes of weights
MEANINGS = {
    "autoencoder": ("model.num_heads", "model.num_res_blocks", "train.schedule", "train.parameterization"),
    "prior": ("prior.schedule", "prior.parameterization"),
}


def check_origin(config: ConfigDict, folder: AnyPath, init: str | None, parent: AnyPath | None, mesh: Mesh) -> None:
    """Checks what a run is asked to start from, before anything is written.

    Args:
        config: The config of the run.
        folder: The run folder, which may not exist yet.
        init: The address of the model whose weights the run starts from: see `address_of`.
        parent: The folder of the run that it continues.
        mesh: The devices.

    Raises:
        UserError: The run has begun from something else, or cannot begin from this. None of the
            weights of the model fit, or those that `train.freeze` would keep do not.
    """
    origin, begun = read_origin(folder), is_begun(folder)
    if init is not None and parent is not None:
        raise UserError("--init starts with new optimizer state and --branch keeps it: use one of them.")
    if init is not None:
        _check_init(folder, init, origin, begun)
    if not begun and parent is None and (init is not None or "init" in origin):
        model = folder / INIT if init is None or not _must_be_read(folder, init) else init
        _check_fit(config, model, init or origin["init"]["path"], mesh)
    if parent is not None:
        _check_parent(config, folder, parent, origin, begun)
    if config.train.freeze != "none" and not (init or parent or origin or begun):
        raise UserError(
            f"train.freeze={config.train.freeze} keeps weights that are already trained, and this run starts from "
            f"nothing: add --init=MODEL, or set it to none."
        )


def _check_init(folder: AnyPath, init: str, origin: dict[str, Any], begun: bool) -> None:
    recorded = origin.get("init", {}).get("path")
    if begun and recorded != init:
        start = "nothing" if recorded is None else recorded
        raise UserError(
            f"The run in {folder} began from {start}, not from {init}. To resume it, leave out --init; to begin from "
            f"{init}, set a different --workdir."
        )


def address_of(model: str | AnyPath) -> str:
    """Returns the name of a shipped model, or the absolute address of another one, as recorded."""
    if is_shipped(model):
        return str(model)
    return str(parse_address(model)) if is_hub_address(model) else str(expand_home(model).absolute())


def _must_be_read(folder: AnyPath, init: str) -> bool:
    """Returns whether a model must be copied, although the run may have a copy of it."""
    recorded = read_origin(folder).get("init", {}).get("path")
    return recorded != init or (not is_hub_address(init) and expand_home(init).exists())


def _check_parent(config: ConfigDict, folder: AnyPath, parent: AnyPath, origin: dict[str, Any], begun: bool) -> None:
    if folder == parent:
        raise UserError(f"--branch={folder.name} is the run itself: choose another name.")
    if begun:
        if origin.get("branch", {}).get("path") != str(parent.absolute()):
            raise UserError(
                f"{folder} holds a run that is not a branch of {parent}: choose another name for --branch, or resume "
                f"it with --workdir={folder}."
            )
        return
    if not is_begun(parent):
        raise UserError(f"{parent} holds no checkpoint, so there is nothing to continue. Check --workdir or the name.")
    refuse_other_networks(from_json(parent / "config.json"), config, parent)


def refuse_other_networks(old: ConfigDict, new: ConfigDict, parent: AnyPath) -> None:
    """Raises UserError if a branch would need weights of other shapes than its parent has."""
    keys = [text for name, text in changes(old.to_dict(), new.to_dict()).items() if shapes_networks(name)]
    if keys:
        raise UserError(
            f"A branch keeps the networks of {parent}, so these keys cannot change: {'; '.join(keys)}. To start a new "
            f"run from the weights that fit, use --init={parent} and a new --workdir instead of --branch."
        )


def record_origin(config: ConfigDict, folder: AnyPath, init: str | None, parent: AnyPath | None, mesh: Mesh) -> None:
    """Records what a new run starts from and copies the model. Prints what fits, and what not.

    Raises UserError if the model cannot be read.
    """
    if is_begun(folder):
        return
    if parent is not None:
        with together():
            if is_main_process():
                inherited = {kind: start for kind, start in read_origin(parent).items() if kind == "init"}
                _write_origin(folder, inherited | {"branch": {"path": str(parent.absolute()), "model": {}}})
    if init is not None and _must_be_read(folder, init):
        model = DiffAE.load(init, mesh)
        digest = model.digest()
        with together():
            model.save(folder / INIT)
            if is_main_process():
                plain = {key: value for key, value in model.origin.items() if not isinstance(value, dict)}
                name = init if is_hub_address(init) else expand_home(init).name
                described = {"name": name, **plain, "digest": digest}
                _write_origin(folder, {"init": {"path": init, "model": described}})
    if "init" in (origin := read_origin(folder)) and "branch" not in origin:
        with together():
            describe_init(config, folder, mesh)


def _write_origin(folder: AnyPath, origin: dict[str, Any]) -> None:
    with os_errors_as_user_errors(folder, "written"):
        write_json(folder / ORIGIN, origin)


# --- the weights of a model ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fit:
    """Which weights of a model a network can start from, by dotted name."""

    weights: dict[str, Any]  # same name, same shape
    misshapen: list[str]
    missing: list[str]  # only in the network
    unused: list[str]  # only in the model

    @property
    def is_whole(self) -> bool:
        """Whether all weights of the network come from the model."""
        return not (self.misshapen or self.missing)


def fit_weights(weights: dict[str, Any], network: Params) -> Fit:
    """Compares the weights of a model, or only their shapes, with the shapes of a network.

    `weights` are arrays or `jax.ShapeDtypeStruct`, by dotted name.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in flatten(network).items()}
    common = shapes.keys() & weights.keys()
    return Fit(
        {name: weights[name] for name in shapes if name in common and weights[name].shape == shapes[name]},
        sorted(name for name in common if weights[name].shape != shapes[name]),
        sorted(shapes.keys() - common),
        sorted(weights.keys() - common),
    )


def starting_weights(folder: AnyPath, part: str, network: Params) -> dict[str, np.ndarray]:
    """Returns the weights that a run without a checkpoint starts from, by dotted name.

    Args:
        folder: The run folder.
        part: "autoencoder" or "prior".
        network: The shapes of all weights of that network.

    Returns:
        Host arrays; none for a run that starts from nothing and for a branch, whose autoencoder
        has a checkpoint. The other weights are random.

    Raises:
        UserError: The copy of the model is damaged.
    """
    origin = read_origin(folder)
    if "init" not in origin or "branch" in origin:
        return {}
    fit = fit_weights(_part_of(read_bundle(folder / INIT).weights, part), network)
    return fit.weights if part == "autoencoder" or fit.is_whole else {}  # a part of a prior is of no use


def _part_of(weights: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{part}."): array for name, array in weights.items() if name.startswith(f"{part}.")}


def describe_init(config: ConfigDict, folder: AnyPath, mesh: Mesh) -> None:
    """Prints which weights a new run takes from the model, and which not."""
    record, bundle = read_origin(folder)["init"], read_bundle(folder / INIT)
    old = flat(bundle.config.to_dict())
    settings = flat(config.to_dict())
    for part, network in abstract_weights(config, mesh).items():
        fit = fit_weights(_part_of(bundle.weights, part), network)
        if part == "prior" and not fit.is_whole:
            say(f"The prior starts from nothing, because {record['path']} has none of these shapes.")
            continue
        say(f"The {part} starts from {record['path']}: {_share(fit, network)} of its parameters.")
        for reason, names in (
            ("Random, because their shapes differ", fit.misshapen),
            ("Random, because the model does not have them", fit.missing),
            ("Not used of the model", fit.unused),
        ):
            if names:
                say(f"  {reason}: {patterns(names)}.")
        for key in MEANINGS[part]:
            if old[key] != settings[key]:
                say(f"  WARNING: the model was trained with {key}={shown(old[key])}, not {shown(settings[key])}.")


def _check_fit(config: ConfigDict, model: str | AnyPath, name: str, mesh: Mesh) -> None:
    """Raises UserError if a model, which the message calls `name`, is of no use for a config."""
    with local_model(model) as local:  # one of the Hub is in the cache, where --config finds it
        old = read_config(local)
    weights, network = (abstract_weights(each, mesh)["autoencoder"] for each in (old, config))
    fit = fit_weights(flatten(weights), network)
    if not fit.weights:
        raise UserError(
            f"No weights of {name} fit the networks of this config. Use the networks that it was trained with, as in "
            f"--config={local / 'config.json'}."
        )
    frozen = config.train.freeze
    others = [name for name in fit.misshapen + fit.missing if name.startswith(f"{frozen}.")]
    if others:
        raise UserError(
            f"train.freeze={frozen} would keep random weights, because these do not fit {name}: {patterns(others)}. "
            f"Set it to none, or use the networks that the model was trained with."
        )


def _share(fit: Fit, network: Params) -> str:
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network))
    fitting = sum(array.size for array in fit.weights.values())
    return "all" if fitting == total else f"{fitting / total:.1%}"


def patterns(names: Iterable[str]) -> str:
    """Lists names of weights in short: numbers become *, and equal patterns are counted."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    return ", ".join(name + f" ({count})" * (count > 1) for name, count in sorted(counts.items()))


# --- the state of another run --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Branch:
    """The state of another run, which a run without a checkpoint continues.

    Attributes:
        parent: The folder of the other run.
        config: Its config.
        step: Its newest step.
        first_step: The step of this run that has seen as many images, rounded down to a whole
            batch. So the order of the images continues, and no image is skipped.
    """

    parent: AnyPath
    config: ConfigDict
    step: int
    first_step: int

    def begin(self, config: ConfigDict, folder: AnyPath, checkpoints: Checkpoints, mesh: Mesh) -> None:
        """Saves the state of the other run as the first checkpoint of this one.

        Weights, EMA weights and optimizer state are the same. Parts that `train.freeze` names keep
        their EMA weights, because all results use these.
        """
        network, sharding = abstract_weights(config, mesh)["autoencoder"], config.execution.sharding
        packing, *layouts = abstract_states(network, _optimizer(self.config), mesh, sharding)
        with _explained_if_gone(self.parent, self.step):
            state, _ = restore(self.parent / "autoencoder" / "checkpoints" / str(self.step), *layouts, packing)
        _, wanted, _ = abstract_states(network, _optimizer(config), mesh, sharding)
        kept = {part: jax.tree.map(jax.numpy.copy, state.ema[part]) for part in frozen_parts(config)}
        state = TrainState(
            step=shard_array(np.asarray(self.first_step, np.int32), wanted.step.sharding),
            params=state.params | kept,
            ema=state.ema,
            # Adam and AdamW have the same arrays in different tuples
            opt_state=jax.tree.unflatten(jax.tree.structure(wanted.opt_state), jax.tree.leaves(state.opt_state)),
            loss_scale=state.loss_scale,
        )
        with together():
            if is_main_process():
                described = {"run": self.config.name, "images_seen": self.step * self.config.train.batch_size}
                origin = read_origin(folder)
                _write_origin(folder, origin | {"branch": origin["branch"] | {"model": described}})
        checkpoints.save(self.first_step, state, dataclasses.asdict(Window()))
        checkpoints.wait()


@contextlib.contextmanager
def _explained_if_gone(parent: AnyPath, step: int) -> Iterator[None]:
    """Explains an error in reading a step that the other run has replaced in the meantime."""
    try:
        yield
    except UserError as error:
        if step in steps_in(parent / "autoencoder" / "checkpoints"):
            raise
        raise UserError(
            f"Step {step:,} of {parent} is gone, because that run is still training. Run the same command again to "
            f"continue from a newer step."
        ) from error


def _optimizer(config: ConfigDict) -> Any:
    return make_optimizer(config.train.learning_rate, config.train.weight_decay)


def frozen_parts(config: ConfigDict) -> tuple[str, ...]:
    """Returns the parts of the autoencoder that are not trained."""
    return () if config.train.freeze == "none" else (config.train.freeze,)


def branch_of(config: ConfigDict, folder: AnyPath) -> Branch | None:
    """Returns the state that a run without a checkpoint continues, or None if there is none.

    Raises UserError if the other run cannot be read, or has other networks.
    """
    record = read_origin(folder).get("branch")
    if record is None or is_begun(folder):
        return None
    parent = expand_home(record["path"])
    if not is_begun(parent):
        raise UserError(f"{parent}, which {folder} continues, holds no checkpoint any more. Restore it.")
    old = from_json(parent / "config.json")
    check(old)
    refuse_other_networks(old, config, parent)
    # one choice for all processes, because a run that is still training saves and removes steps
    step, _ = found_by_main_process(lambda: find_undamaged(parent / "autoencoder" / "checkpoints"))
    seen = step * old.train.batch_size
    say(f"Continues {parent} after {seen:,} images.")
    for text in changes(old.to_dict(), config.to_dict()).values():
        say(f"  {text}")
    return Branch(parent, old, step, seen // config.train.batch_size)
