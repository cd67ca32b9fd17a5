"""Reads the files of torch.save without PyTorch, and without running anything that a file asks for.

Such a file is a zip: `data.pkl` tells in pickle instructions how to build the objects, and `data/<key>` holds the bytes
of one storage, into which tensors look. Unpickling may call any function of Python; here a small stack machine goes
through the instructions, knows plain data and how tensors are put together, and refuses the rest by name. Every number
of a file is checked before the first byte of a tensor is read.
"""

import dataclasses
import io
import math
import os
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.errors import UserError

# A tensor takes some 30 instructions and an entry. At these limits the worst of files takes a second to refuse.
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 2 * 2**20
MAX_PICKLE_BYTES = 16 * 2**20
MAX_INSTRUCTIONS = 500_000
MAX_DIMENSIONS = 8
MAX_EMPTY = 2**32  # product of a tensor's other dimensions where one is 0
MAX_INTEGER_KEY = 2**60  # greater integers can share one hash, and then a dict of n keys takes n^2 steps

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
STORAGE_TYPES = {  # how the elements lie in the file; bfloat16, the upper half of a float32, is unknown to numpy
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
}
GIVEN_AS = {"torch.BFloat16Storage": "<f4", "torch.BoolStorage": "?"}  # where it is not what lies in the file
KNOWN_NAMES = {REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, *STORAGE_TYPES}
INERT_PACKAGES = ("pytorch_lightning.", "lightning.pytorch.", "lightning_fabric.")


class _Refusal(Exception):
    """What is wrong with a file, as the end of a sentence that begins with its path."""


class Inert(dict):
    """Stands for a class of Lightning, or for an instance of one with its items; it does nothing.

    `name` is the class's module and name with a dot between. Compared by identity, so that it can be a key.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, name: str):
        super().__init__()
        self.name = name


@dataclasses.dataclass(frozen=True)
class _Known:
    """A global of PyTorch or Python that is understood; what calling it does is written in `_Machine.call`."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """The elements of one entry of a file, as a storage type sees them."""

    path: Path
    identity: tuple[int, ...]  # of the file that was checked
    start: int  # byte in the file
    elements: int
    type_name: str

    @property
    def dtype(self) -> np.dtype:
        """What the elements are given as."""
        return np.dtype(GIVEN_AS.get(self.type_name, STORAGE_TYPES[self.type_name])).newbyteorder("=")

    def read(self, first: int, count: int) -> np.ndarray:
        """Returns elements in one dimension. Raises UserError where the file is no longer the one that was checked."""
        raw = np.empty(count, STORAGE_TYPES[self.type_name])
        try:
            with self.path.open("rb") as file:
                file.seek(self.start + first * raw.itemsize)
                complete = file.readinto(raw.view(np.uint8)) == raw.nbytes
                unchanged = _identity(file) == self.identity
        except OSError as error:
            raise UserError(f"{self.path} cannot be read any more ({error.strerror}).") from error
        if not (complete and unchanged):
            raise UserError(f"{self.path} has changed since it was opened: run the command again.")
        if self.type_name == "torch.BFloat16Storage":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(self.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that was checked and not yet read; `dtype` is what `numpy` gives, float32 for bfloat16."""

    shape: tuple[int, ...]
    dtype: np.dtype
    storage: Storage
    offset: int  # in elements, as are the strides
    strides: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        """Reads this tensor alone into an array of its own. Raises UserError where the file has changed."""
        elements = self.storage.read(self.offset, _extent(self.shape, self.strides))
        strides = tuple(stride * elements.itemsize for stride in self.strides)
        return np.asarray(np.ndarray(self.shape, elements.dtype, elements, strides=strides), order="C")


def read_checkpoint(path: str | Path) -> Any:
    """Returns the objects of a file that torch.save wrote; its tensors are `StoredTensor`, read only when asked for.

    Raises UserError for what is not such a file, is damaged, or asks for more than plain data and tensors.
    """
    path = Path(path)
    try:
        if not path.is_file():  # to open a pipe would wait for its writer
            raise _Refusal("is a folder or device, not a file." if path.exists() else "does not exist: check the path.")
        with path.open("rb", buffering=0) as file:
            identity, entries = _identity(file), _entries(file)
            if "byteorder" in entries and _read_entry(file, entries["byteorder"]) != b"little":
                raise _Refusal("was written on a big-endian machine: save it again on a little-endian one.")
            return _Machine(path, identity, entries).run(_read_entry(file, entries["data.pkl"]))
    except _Refusal as refusal:
        raise UserError(f"{path} {refusal}") from refusal
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error


class _DirectoryReads(io.FileIO):
    """What zipfile reads from: it believes the size of the directory, which may be told as that of the whole file."""

    def read(self, size: int = -1, /) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise _Refusal(f"has a directory of {size:,} bytes, more than the {MAX_DIRECTORY_BYTES:,} that are read.")
        return super().read(size)


def _identity(file: Any) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _entries(file: io.FileIO) -> dict[str, tuple[int, int]]:
    """Returns where the bytes of each entry lie: name below the root folder -> (start, size)."""
    _check_kind(file.read(64))
    try:
        with zipfile.ZipFile(_DirectoryReads(file.fileno(), closefd=False)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        length = file.seek(0, os.SEEK_END)
        raise _Refusal(f"is cut short or damaged at {length:,} bytes: download or copy it again.") from error
    names = [info.filename for info in infos]
    if len(names) > MAX_ENTRIES:
        raise _Refusal(f"holds {len(names):,} entries, more than the {MAX_ENTRIES:,} that are read.")
    if len(set(names)) < len(names):
        raise _Refusal(f"holds {len(names):,} entries under {len(set(names)):,} names.")
    roots = sorted({name.partition("/")[0] for name in names})
    if len(roots) != 1:
        raise _Refusal(f"holds {len(roots)} folders where a checkpoint has one.")
    spans = _spans(file, infos)
    if "constants.pkl" in spans or any(name.startswith("code/") for name in spans):
        raise _Refusal("is a TorchScript program, not a checkpoint: save its state_dict() with torch.save.")
    if "data.pkl" not in spans:
        raise _Refusal("is a zip without data.pkl, so not a checkpoint of PyTorch.")
    return spans


def _check_kind(head: bytes) -> None:
    if not head:
        raise _Refusal("is empty: download or copy it again.")
    if head.lstrip().startswith(b"<"):
        raise _Refusal("is a web page, not a checkpoint: the download failed, so fetch it again.")
    if LEGACY_MAGIC in head:
        raise _Refusal("is a legacy file: save it again with torch.save(torch.load(f), f) in PyTorch 1.6 or later.")
    if not head.startswith(b"PK\3\4"):
        raise _Refusal("is not a zip, as the files of torch.save are.")


def _spans(file: io.FileIO, infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Returns the spans of the entries, having seen that they lie in the file, plain and side by side."""
    spans, end, length = {}, 0, file.seek(0, os.SEEK_END)
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = _shown(info.filename)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise _Refusal(f"holds {name} compressed or encrypted, as torch.save does not: save it again.")
        if info.header_offset < end:
            raise _Refusal(f"is damaged: {name} begins within another entry, before byte {end:,}.")
        if info.header_offset + LOCAL_HEADER.size > length:
            raise _Refusal(f"is cut short: {name} would begin at byte {info.header_offset:,} of {length:,}.")
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER.size + len(encoded))
        signature, _, flags, method, *_, name_length, extra_length = LOCAL_HEADER.unpack_from(header)
        if (signature, flags & 1, method) != (b"PK\3\4", 0, 0) or header[LOCAL_HEADER.size :] != encoded:
            raise _Refusal(f"is damaged: no entry {name} begins at byte {info.header_offset:,}.")
        start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
        end = start + info.file_size
        if end > length:
            raise _Refusal(f"is cut short: {name} would end at byte {end:,} of {length:,}.")
        spans[info.filename.partition("/")[2]] = start, info.file_size
    return spans


def _read_entry(file: io.FileIO, span: tuple[int, int]) -> bytes:
    start, size = span
    if size > MAX_PICKLE_BYTES:
        raise _Refusal(f"describes its tensors in {size:,} bytes, more than the {MAX_PICKLE_BYTES:,} that are read.")
    file.seek(start)
    return file.read(size)


def _shown(value: Any) -> str:
    """Text of a file as it may stand in a message: short, in one line."""
    return str(value)[:100].encode("unicode_escape").decode()


def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """The elements from a tensor's first to its last in the storage."""
    return 0 if 0 in shape else 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


class _Machine:
    """Follows the instructions of a pickle as far as they make plain data and tensors."""

    def __init__(self, path: Path, identity: tuple[int, ...], entries: dict[str, tuple[int, int]]):
        self.path, self.identity, self.entries = path, identity, entries
        self.frames: list[list] = [[]]  # a mark begins a new frame, so that nobody takes what lies below it
        self.memo: dict[int, Any] = {}

    def run(self, pickle: bytes) -> Any:
        """Returns the object that a pickle describes. Raises _Refusal for anything unusual."""
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if opcode.name == "STOP":
                    return self.pop()[0]
                if count >= MAX_INSTRUCTIONS:
                    raise _Refusal(f"has a data.pkl of more than the {MAX_INSTRUCTIONS:,} instructions that are read.")
                if opcode.name not in OPERATIONS:
                    raise _Refusal(f"uses the pickle instruction {opcode.name}, which no checkpoint needs.")
                OPERATIONS[opcode.name](self, argument)
        except (ValueError, OverflowError, MemoryError) as error:  # of genops; its text may hold the whole file
            raise _Refusal("has a damaged data.pkl: download or copy it again.") from error
        raise AssertionError("genops ends with STOP or raises")

    def pop(self, count: int = 1) -> tuple:
        """Takes values from the stack, but not from below a mark."""
        frame = self.frames[-1]
        if len(frame) < count:
            raise _Refusal("has a damaged data.pkl, which takes from an empty stack.")
        values = tuple(frame[len(frame) - count :])
        del frame[len(frame) - count :]
        return values

    def pop_frame(self) -> list:
        """Takes all values down to the last mark."""
        if len(self.frames) == 1:
            raise _Refusal("has a damaged data.pkl, which looks for a mark that was not set.")
        return self.frames.pop()

    def discard(self) -> None:
        if len(self.frames) > 1 and not self.frames[-1]:
            self.frames.pop()  # POP takes a mark, too
        else:
            self.pop()

    def push(self, value: Any) -> None:
        self.frames[-1].append(value)

    def top(self, *types: type) -> Any:
        """Returns the value on top, which stays there and has to be of one of the types, where some are given."""
        (value,) = self.pop()
        self.push(value)
        if types and type(value) not in types:
            raise _Refusal(f"has a damaged data.pkl, which takes a {type(value).__name__} for a {types[0].__name__}.")
        return value

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _Refusal(f"has a damaged data.pkl, which recalls object {index:,} before it was made.")
        self.push(self.memo[index])

    def memorize(self, index: int) -> None:
        self.memo[index] = self.top()

    def extend(self, values: Sequence) -> None:
        self.top(list).extend(values)

    def add(self, values: Sequence) -> None:
        self.top(set).update(_checked_keys(values))

    def update(self, values: Sequence) -> None:
        target = self.top(dict, OrderedDict, Inert)
        if len(values) % 2:
            raise _Refusal("has a damaged data.pkl, with a key that has no value.")
        target.update(zip(_checked_keys(values[::2]), values[1::2], strict=True))

    def find(self, module: Any, name: Any) -> None:
        """Pushes what stands for a global. It is looked up here by its name, and never imported."""
        if type(module) is not str or type(name) is not str:
            raise _Refusal("has a damaged data.pkl, which names a global by something else than text.")
        full_name = f"{module}.{name}"
        if full_name in KNOWN_NAMES:
            self.push(_Known(full_name))
        elif f"{module}.".startswith(INERT_PACKAGES):
            self.push(Inert(_shown(full_name)))
        else:
            raise _Refusal(f"asks for {_shown(full_name)}, neither plain data nor a tensor: nothing of it was run.")

    def call(self) -> None:
        """Carries out a call of what is known, in the few ways that torch.save writes, or of a stand-in."""
        callee, arguments = self.pop(2)
        if type(callee) is Inert:
            self.push(Inert(callee.name))
        elif callee == _Known(ORDERED_DICT) and arguments == ():
            self.push(OrderedDict())
        elif callee == _Known(REBUILD_TENSOR):
            self.push(_rebuilt_tensor(arguments))
        elif callee == _Known(REBUILD_PARAMETER) and _types(arguments) == [StoredTensor, bool, OrderedDict]:
            self.push(arguments[0])
        else:
            raise _Refusal("calls something in another way than torch.save does: nothing of it was run.")

    def new_object(self, arguments: int) -> None:
        """Makes an instance of a stand-in, and drops the arguments."""
        self.pop(arguments)
        name = self.top(Inert).name
        self.pop()
        self.push(Inert(name))

    def build(self) -> None:
        """Drops the state of a stand-in, or of a state_dict(), which keeps the versions of its modules there."""
        self.pop()
        self.top(Inert, OrderedDict)

    def find_storage(self) -> None:
        (description,) = self.pop()
        if _types(description) != [str, _Known, str, str, int] or description[0] != "storage":
            raise _Refusal("describes a storage in another way than torch.save does.")
        _, type_, key, _, elements = description
        if type_.name not in STORAGE_TYPES:
            raise _Refusal(f"takes {type_.name} for a type of storage.")
        if f"data/{key}" not in self.entries:
            raise _Refusal(f"lacks the entry data/{_shown(key)}: download or copy it again.")
        start, size = self.entries[f"data/{key}"]
        if elements * np.dtype(STORAGE_TYPES[type_.name]).itemsize != size:
            told = f"{_shown(elements)} elements of {type_.name}"
            raise _Refusal(f"declares {told} for data/{_shown(key)}, which has {size:,} bytes.")
        self.push(Storage(self.path, self.identity, start, elements, type_.name))


def _types(values: Any) -> list[type]:
    """The types of a tuple's values, and none for what is no tuple; exact, as True is no integer here."""
    return [type(value) for value in values] if type(values) is tuple else []


def _checked_keys(keys: Sequence) -> Sequence:
    """Returns keys that cost nothing to hash: of nested tuples it may take forever."""
    for key in keys:
        if type(key) not in (str, int, float, bool, type(None), Inert):
            raise _Refusal(f"uses a {type(key).__name__} as a key, which no checkpoint needs.")
        if type(key) is int and abs(key) >= MAX_INTEGER_KEY:
            raise _Refusal(f"uses an integer of {key.bit_length():,} bits as a key, which no checkpoint needs.")
    return keys


def _rebuilt_tensor(arguments: Any) -> StoredTensor:
    """Returns a tensor whose elements all lie in its storage, and are no more than those."""
    wanted = _types(arguments)[:5] == [Storage, int, tuple, tuple, bool] and len(arguments) in (6, 7)
    if not wanted or any(arguments[6:]):  # the seventh would tell of a minus sign that was not yet carried out
        raise _Refusal("describes a tensor in another way than torch.save does.")
    storage, offset, shape, strides = arguments[:4]
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise _Refusal(f"holds a tensor of {len(shape):,} dimensions with {len(strides):,} strides.")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise _Refusal("holds a tensor whose offset, shape or strides are no natural numbers.")
    told = _shown(f"a tensor of shape {shape} with strides {strides} at {offset}")
    if math.prod(n or 1 for n in shape) > max(storage.elements, MAX_EMPTY if 0 in shape else 1):
        raise _Refusal(f"declares {told}, but its storage has {storage.elements:,} elements.")
    if offset + _extent(shape, strides) > storage.elements:
        raise _Refusal(f"declares {told}, which lies outside of its storage of {storage.elements:,} elements.")
    # A stride that leads nowhere may be any number, also one that numpy cannot hold.
    strides = tuple(stride if n > 1 and 0 not in shape else 0 for n, stride in zip(shape, strides, strict=True))
    return StoredTensor(shape, storage.dtype, storage, offset, strides)


PUSHED = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
PUSHED_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
MADE = {"NONE": type(None), "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(PUSHED + PUSHED_BYTES, _Machine.push),
    **{name: lambda machine, _, make=make: machine.push(make()) for name, make in MADE.items()},
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_frame())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(_checked_keys(machine.pop_frame()))),
    "APPEND": lambda machine, _: machine.extend(machine.pop()),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_frame()),
    "SETITEM": lambda machine, _: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_frame()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_frame()),
    "MARK": lambda machine, _: machine.frames.append([]),
    "POP": lambda machine, _: machine.discard(),
    "POP_MARK": lambda machine, _: machine.pop_frame(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "BINPUT": _Machine.memorize,
    "LONG_BINPUT": _Machine.memorize,
    "MEMOIZE": lambda machine, _: machine.memorize(len(machine.memo)),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda machine, name: machine.find(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new_object(1),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(2),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.find_storage(),
}
