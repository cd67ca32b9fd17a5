"""The official models: their folders, the files in them, and which of these an import needs."""

import dataclasses
from pathlib import Path

from diffae_jax.runtime.buckets import BucketPath
from diffae_jax.runtime.errors import UserError, list_some, shown
from diffae_jax.runtime.files import AnyPath, expand_home, os_errors_as_user_errors

CHECKPOINT = "last.ckpt"
LATENTS = ("latent.pkl", "latent.ckpt")  # the second is the name on the page of the official code
CHECKPOINTS = "checkpoints"  # the folder of all models in the official code
PAGE = "https://github.com/phizaz/diffae#checkpoints"  # has a link for each published folder


@dataclasses.dataclass(frozen=True)
class Released:
    """An official model.

    Attributes:
        content: what it can do, for people.
        latents: the folder with its latent.pkl; empty if it has no z, or the statistics of z are
            in the checkpoint.
        classifier: the folder of its classifier; empty if there is none.
        is_published: whether the authors published the checkpoint; otherwise the folder is one
            that the official training scripts write.
    """

    content: str
    latents: str = ""
    classifier: str = ""
    is_published: bool = True


def _family(
    data: str, autoencoder: str, ddpms: tuple[str, ...], classifier: str = "", is_published: bool = True
) -> dict[str, Released]:
    """Returns the models of a data set that belong together."""
    models = {name: Released("DDIM baseline without z", "", "", is_published) for name in ddpms}
    models[autoencoder] = Released("autoencoder", autoencoder, classifier, is_published)
    models[f"{data}_autoenc_latent"] = Released("autoencoder and prior", "", classifier, is_published)
    return models


RELEASED: dict[str, Released] = {
    "ffhq128_autoenc_72M": Released("autoencoder, trained for 72 M images", "ffhq128_autoenc_72M"),
    **_family(
        "ffhq128", "ffhq128_autoenc_130M", ("ffhq128_ddpm_72M", "ffhq128_ddpm_130M"), classifier="ffhq128_autoenc_cls"
    ),
    **_family("ffhq256", "ffhq256_autoenc", (), classifier="ffhq256_autoenc_cls"),
    **_family("bedroom128", "bedroom128_autoenc", ("bedroom128_ddpm",)),
    **_family("horse128", "horse128_autoenc", ("horse128_ddpm",)),
    **_family("celeba64d2c", "celeba64d2c_autoenc", ("celeba64d2c_ddpm",), is_published=False),
}


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a model on this machine. Those that are missing and not needed are None."""

    checkpoint: AnyPath
    latents: Path | None = None
    classifier: Path | None = None


def find(name: str | AnyPath) -> Files:
    """Returns the files of a model, given its checkpoint or its folder.

    Args:
        name: a file; or a folder that is named like an official model; or that name alone, for a
            folder in the current one or in `checkpoints`.

    Returns:
        The file alone, or the checkpoint in the folder, with the latents and the classifier in the
        folders next to it.

    Raises:
        UserError: if there is neither a file nor such a folder, or if the checkpoint is missing.
    """
    path = expand_home(name)
    if isinstance(path, BucketPath):
        return Files(path)
    with os_errors_as_user_errors(path):
        candidates = [path] if len(path.parts) != 1 else [path, Path(CHECKPOINTS) / path]
        folder = next((candidate for candidate in candidates if candidate.exists()), candidates[-1])
        if folder.exists() and not folder.is_dir():
            return Files(folder)
        model = RELEASED.get(folder.name)
        if model is None:
            if not folder.exists() and len(path.parts) > 1:
                return Files(path)  # the reader of the file reports it
            raise _not_a_model(path, is_folder=folder.is_dir())
        if not (folder / CHECKPOINT).is_file():
            where = f"published at {PAGE}" if model.is_published else "which the official training script writes"
            raise UserError(
                f"{folder / CHECKPOINT} is missing. Download the folder {folder.name}, {where}, and keep its name."
            )
        latents = [folder.parent / model.latents / file for file in LATENTS if model.latents]
        classifier = [folder.parent / model.classifier / CHECKPOINT] if model.classifier else []
        return Files(folder / CHECKPOINT, _first_file(latents), _first_file(classifier))


def _first_file(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _not_a_model(path: Path, is_folder: bool) -> UserError:
    """Returns the error for a name that is neither a file nor an official model."""
    found = sorted(name for name in RELEASED if (path / name).is_dir()) if is_folder else []
    if found:
        return UserError(f"{path} holds several models ({list_some(found)}). Pass one of them, or --list for all.")
    return UserError(
        f"{shown(str(path))} is neither a checkpoint nor the folder of an official model. Pass a file such as "
        f"{CHECKPOINT}, or run diffae import --list for the names of the folders."
    )


def describe(folder: Path) -> str:
    """Returns a line for each file of each official model, and whether `folder` has it."""
    lines = [f"Official models in {shown(str(folder))}. Folders that are not marked * are published at {PAGE}."]
    for name, model in RELEASED.items():
        lines.append(f"{name}{'' if model.is_published else ' *'}: {model.content}")
        files = [([f"{name}/{CHECKPOINT}"], "needed")]
        if model.latents:
            files.append(([f"{model.latents}/{file}" for file in LATENTS], "to normalize z"))
        if model.classifier:
            files.append(([f"{model.classifier}/{CHECKPOINT}"], "for probes of 40 attributes"))
        for names, purpose in files:
            with os_errors_as_user_errors(folder):
                found = _first_file([folder / file for file in names])
            shown_name = names[0] if found is None else found.relative_to(folder).as_posix()
            lines.append(f"  {'missing' if found is None else 'found':8}{shown_name}, {purpose}")
    return "\n".join(lines)
