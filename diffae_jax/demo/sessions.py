"""What the page remembers: the model, which all people share, and a session for each of them."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from diffae_jax.demo.downloads import Downloads
from diffae_jax.demo.images import ChosenImage, ImageSet, distinct, uploaded_file
from diffae_jax.demo.snippets import Origin
from diffae_jax.inference.bundle import check_probe_name
from diffae_jax.inference.diffae import DiffAE
from diffae_jax.inference.recommended import DEFAULT_STEPS
from diffae_jax.probes import Probe, directions, fit
from diffae_jax.runtime.errors import UserError, shown

MOST_SESSIONS = 16
MOST_CLOSED = 1024  # closed browser tabs that are remembered
MOST_BYTES = 2**27  # of the results that a session keeps
MOST_UPLOADS = 12  # single images that a session keeps
DECODE_BATCH = 8
START_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all sessions share.

    Attributes:
        model: the model.
        location: the path or name of the model, as the person who started the page wrote it.
        images: the images that each session starts with.
        folder: where downloads are written.
        turn: the lock that a thread holds while it calls networks, so that they run one at a time.
    """

    model: DiffAE
    location: str
    images: ImageSet
    folder: Path
    turn: threading.RLock = dataclasses.field(default_factory=threading.RLock)


@dataclasses.dataclass(frozen=True)
class FittedProbe:
    """A probe that was fitted on the page.

    Attributes:
        probe: the probe.
        code: the lines that fit it.
        origin: how code gets the labeled images.
    """

    probe: Probe
    code: str
    origin: Origin


class Results:
    """Keeps the newest results by key, up to a number of bytes."""

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns the result of that key, which is computed if it is not kept."""
        if key not in self._kept:
            self._kept[key] = compute()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(map(_num_bytes, self._kept.values())) > self._most_bytes:
            self._kept.popitem(last=False)
        return self._kept[key]


def _num_bytes(result: Any) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(result))


class Session:
    """What one browser tab has chosen, uploaded and computed. One event at a time uses it.

    Attributes:
        lock: the lock that an event holds from its start to its end.
        is_closed: whether the browser tab was closed, so the files are gone.
        images: the set of images that the page shows.
        uploads: the images that were uploaded one by one, the newest first.
        chosen: the image that the tabs use, or None.
        second: the image to interpolate to, or None.
        num_steps: the number of steps; None for the recommended settings of the model.
        slice: the slice of volumes that the page shows.
        tab: the title of the open tab.
        version: grows whenever one of the above changes.
        fitted: the probes that this person fitted, by name.
        strengths: the strength of each probe that was used, by name.
        marks: by index in `images`, whether that image has the new label.
        downloads: the files that this person can download.
    """

    def __init__(self, shared: Shared):
        self.shared, self.model = shared, shared.model
        self.lock, self.is_closed = threading.Lock(), False
        self.images = shared.images
        self.uploads: list[ChosenImage] = []
        self.chosen = self.images.at(0) if len(self.images) else None
        self.second: ChosenImage | None = None
        self.num_steps: int | None = START_STEPS if self.model.recommended is None else None
        self.slice = self.model.image_shape[0] // 2
        self.tab, self.version = "", 0
        self.fitted: dict[str, FittedProbe] = {}
        self.strengths: dict[str, float] = {}
        self.marks: dict[int, bool] = {}
        self.downloads = Downloads(shared.folder)
        self._results = Results(MOST_BYTES)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns a result of the model, which is computed if it is not kept."""
        with self.shared.turn:
            return self._results.get((key, self.num_steps), compute)

    def close(self) -> None:
        """Removes all files, as soon as no event uses them."""
        with self.lock:
            self.is_closed = True
            self.downloads.remove()

    # --- images ----------------------------------------------------------------------------------

    def need_image(self) -> ChosenImage:
        """Returns the chosen image. Raises UserError if there is none."""
        if self.chosen is None:
            raise UserError("There is no image yet. Upload one.")
        return self.chosen

    def choose(self, image: ChosenImage) -> None:
        """Makes an image the one that the tabs use."""
        self.chosen = image
        self.version += 1

    def upload(self, image: Shaped[np.ndarray, "*shape"], name: str) -> None:
        """Adds an image to the uploads, and chooses it. If its name is taken, it gets a number."""
        taken = [*(upload.name for upload in self.uploads), *self.images.names]
        *_, name = distinct([*taken, name])
        self.uploads = [ChosenImage(image, name, uploaded_file(name)), *self.uploads][:MOST_UPLOADS]
        self.choose(self.uploads[0])

    def replace_images(self, images: ImageSet) -> None:
        """Shows another set of images."""
        self.images, self.marks, self.second = images, {}, None
        self.choose(images.at(0))

    # --- the model -------------------------------------------------------------------------------

    @property
    def random_steps(self) -> int:
        """The number of steps with random x_T, for which no settings are recommended."""
        return self.num_steps or DEFAULT_STEPS

    @property
    def steps_in_code(self) -> str:
        """The argument `num_steps` of a call, with a comma before it, unless it is left out."""
        return "" if self.num_steps is None else f", num_steps={self.num_steps}"

    def codes(self, image: ChosenImage) -> tuple[Float[np.ndarray, "1 d"] | None, Float[np.ndarray, "1 *shape"]]:
        """Returns z (None for a DDIM baseline) and x_T of an image."""

        def compute():
            images = image.image[None]
            z = None if self.model.config.model.z_dim is None else self.model.encode(images)
            return z, self.model.invert(images, z, self.num_steps)

        return self.once(("codes", image.digest), compute)

    def repeated_codes(
        self, image: ChosenImage, count: int
    ) -> tuple[Float[np.ndarray, "n d"] | None, Float[np.ndarray, "n *shape"]]:
        """Returns z and x_T of an image, `count` times."""
        z, x_T = self.codes(image)
        return None if z is None else np.repeat(z, count, axis=0), np.repeat(x_T, count, axis=0)

    def decode(
        self, z: Float[np.ndarray, "n d"] | None, x_T: Float[np.ndarray, "n *shape"]
    ) -> Float[np.ndarray, "n *shape"]:
        """Decodes codes in small batches of one size, which are compiled once."""
        decoded = []
        for start in range(0, len(x_T), DECODE_BATCH):
            part = slice(start, start + DECODE_BATCH)
            with self.shared.turn:
                decoded.append(self.model.decode(None if z is None else z[part], x_T[part], self.num_steps))
        return np.concatenate(decoded)

    def reconstruction(self, image: ChosenImage) -> Float[np.ndarray, "*shape"]:
        """Returns the image, decoded from its z and its own x_T."""
        return self.once(("reconstruction", image.digest), lambda: self.decode(*self.codes(image)))[0]

    # --- probes ----------------------------------------------------------------------------------

    def directions(self) -> dict[str, Probe]:
        """Returns a probe for each direction by name, first those that this person fitted."""
        return {name: fitted.probe for name, fitted in self.fitted.items()} | directions(self.model.probes)

    def fit_probe(self, name: str, rows: list[int], labels: list[int], code: str) -> Probe:
        """Fits a probe to some images of the set and keeps it, with the code that fits it.

        Raises UserError if the name is taken or the labels are too few.
        """
        check_probe_name(name)
        if name in directions(self.model.probes) or name in self.model.probes:
            raise UserError(f"The model already has a probe {shown(name)}. Use another name.")
        probe = fit(name, self.model.statistics.normalize(self.images.z[rows]), labels, kind="binary")
        self.fitted[name] = FittedProbe(probe, code, self.images.origin_of(rows))
        return probe

    def code_of_probes(self, names: Iterable[str]) -> tuple[list[Origin], str]:
        """Returns the code that fits the probes that the model does not have, and its images."""
        fitted = [self.fitted[name] for name in names if name in self.fitted]
        return [each.origin for each in fitted], "".join(f"{each.code}\n" for each in fitted)


class Sessions:
    """The sessions by the hash of their browser tab. The oldest ones are closed."""

    def __init__(self, shared: Shared):
        self._shared, self._lock = shared, threading.Lock()
        self._by_hash: collections.OrderedDict[str, Session] = collections.OrderedDict()
        self._closed: collections.deque[str] = collections.deque(maxlen=MOST_CLOSED)

    def __len__(self) -> int:
        return len(self._by_hash)

    @contextlib.contextmanager
    def use(self, session_hash: str) -> Iterator[Session]:
        """Yields a session to one event at a time. It is new if there was none of that hash.

        Raises UserError if the session is closed, also if that happened while the event waited.
        """
        session = self._of(session_hash)
        with session.lock:
            if session.is_closed:
                raise _closed_error()
            yield session

    def close(self, session_hash: str) -> None:
        """Closes a session, whose browser tab was closed. Events that still wait are refused."""
        with self._lock:
            self._closed.append(session_hash)
            session = self._by_hash.pop(session_hash, None)
        if session is not None:
            session.close()

    def _of(self, session_hash: str) -> Session:
        with self._lock:
            if session_hash in self._closed:
                raise _closed_error()
            if session_hash not in self._by_hash:
                self._by_hash[session_hash] = Session(self._shared)
            self._by_hash.move_to_end(session_hash)
            session, oldest = self._by_hash[session_hash], next(iter(self._by_hash))
            is_full = len(self._by_hash) > MOST_SESSIONS
        if is_full:
            self.close(oldest)
        return session


def _closed_error() -> UserError:
    return UserError(f"This page was closed, or {MOST_SESSIONS} newer ones are open. Reload it.")
