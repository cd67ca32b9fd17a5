"""Follows the pickle instructions of a file of torch.save as far as they make plain data and tensors.

Unpickling may call any function of Python; this small stack machine calls none that a file names. It knows plain data
and how tensors are put together, and refuses the rest by name.
"""

import dataclasses
import io
import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffae_jax.runtime.errors import shown
from diffae_jax.torch_files.stored import STORAGE_TYPES, Entry, Refusal, Storage, StoredTensor, extent

# A tensor takes some 30 instructions. At these limits the worst of files takes a second to refuse.
MAX_INSTRUCTIONS = 200_000
MAX_PICKLE_BYTES = 16 * 2**20
LONGEST_NAME = 500  # of a global or a storage: a text may be recalled often, and to put it in another copies it
MAX_DIMENSIONS = 8
MAX_EMPTY = 2**32  # product of a tensor's other dimensions where one is 0
MAX_INTEGER_KEY = 2**60  # greater integers can share one hash, and then a dict of n keys takes n^2 steps

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
KNOWN_NAMES = {REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, *STORAGE_TYPES}
INERT_PACKAGES = ("pytorch_lightning.", "lightning.pytorch.", "lightning_fabric.")


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
class Known:
    """A global of PyTorch or Python that is understood; what calling it does is written in `Machine.call`."""

    name: str


class Machine:
    """Follows the instructions of a pickle as far as they make plain data and tensors."""

    part = "data.pkl"  # what the pickle is called in a sentence
    described: tuple[type, ...] = (str, Known, str, str, int)  # how a storage is: kind, type, key, device, elements

    def __init__(self, path: Path, identity: tuple[int, ...], entries: dict[str, Entry]):
        self.path, self.identity, self.entries = path, identity, entries
        self.frames: list[list] = [[]]  # a mark begins a new frame, so that nobody takes what lies below it
        self.memo: dict[int, Any] = {}
        self.num_items = 0  # of ordered dicts that were made of lists

    def run(self, pickle: bytes | io.BytesIO, limit: int | None = None) -> Any:
        """Returns the object that a pickle describes, in `limit` instructions. Raises Refusal for anything unusual.

        Of a stream no more is read than the pickle.
        """
        limit = MAX_INSTRUCTIONS if limit is None else limit
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if opcode.name == "STOP":
                    return self.pop()[0]
                if count >= limit:
                    raise Refusal(f"has a {self.part} of more than the {limit:,} instructions that are read.")
                if opcode.name not in OPERATIONS:
                    raise Refusal(f"uses the pickle instruction {opcode.name}, which no checkpoint needs.")
                OPERATIONS[opcode.name](self, argument)
        except (ValueError, OverflowError, MemoryError) as error:  # of genops; its text may hold the whole file
            raise Refusal(f"has a damaged {self.part}: download or copy it again.") from error
        raise AssertionError("genops ends with STOP or raises")

    def pop(self, count: int = 1) -> tuple:
        """Takes values from the stack, but not from below a mark."""
        frame = self.frames[-1]
        if len(frame) < count:
            raise Refusal(f"has a damaged {self.part}, which takes from an empty stack.")
        values = tuple(frame[len(frame) - count :])
        del frame[len(frame) - count :]
        return values

    def pop_frame(self) -> list:
        """Takes all values down to the last mark."""
        if len(self.frames) == 1:
            raise Refusal(f"has a damaged {self.part}, which looks for a mark that was not set.")
        return self.frames.pop()

    def discard(self) -> None:
        """Drops the last value or mark."""
        if len(self.frames) > 1 and not self.frames[-1]:
            self.frames.pop()  # POP takes a mark, too
        else:
            self.pop()

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.frames[-1].append(value)

    def top(self, *types: type) -> Any:
        """Returns the value on top, which stays there and has to be of one of the types, where some are given."""
        (value,) = self.pop()
        self.push(value)
        if types and type(value) not in types:
            raise Refusal(f"has a damaged {self.part}, which takes a {type(value).__name__} for a {types[0].__name__}.")
        return value

    def recall(self, index: int) -> None:
        """Pushes an object of the memo."""
        if index not in self.memo:
            raise Refusal(f"has a damaged {self.part}, which recalls object {index:,} before it was made.")
        self.push(self.memo[index])

    def memorize(self, index: int) -> None:
        """Keeps the object on top in the memo."""
        self.memo[index] = self.top()

    def extend(self, values: Sequence) -> None:
        """Appends to the list on top."""
        self.top(list).extend(values)

    def add(self, values: Sequence) -> None:
        """Adds to the set on top."""
        self.top(set).update(_checked_keys(values))

    def update(self, values: Sequence) -> None:
        """Adds keys and values, in turns, to the dict on top."""
        target = self.top(dict, OrderedDict, Inert)
        if len(values) % 2:
            raise Refusal(f"has a damaged {self.part}, with a key that has no value.")
        target.update(zip(_checked_keys(values[::2]), values[1::2], strict=True))

    def find(self, module: Any, name: Any) -> None:
        """Pushes what stands for a global. It is looked up here by its name, and never imported."""
        if type(module) is not str or type(name) is not str:
            raise Refusal(f"has a damaged {self.part}, which names a global by something else than text.")
        if len(module) + len(name) > LONGEST_NAME:
            told = shown(f"{module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}")
            raise Refusal(f"asks for {told}, a name of {len(module) + len(name):,} characters: nothing of it was run.")
        full_name = f"{module}.{name}"
        if full_name in KNOWN_NAMES:
            self.push(Known(full_name))
        elif f"{module}.".startswith(INERT_PACKAGES):
            self.push(Inert(shown(full_name)))
        else:
            raise Refusal(f"asks for {shown(full_name)}, neither plain data nor a tensor: nothing of it was run.")

    def call(self) -> None:
        """Carries out a call of what is known, in the few methods that torch.save writes, or of a stand-in."""
        callee, arguments = self.pop(2)
        if type(callee) is Inert:
            self.push(Inert(callee.name))
        elif callee == Known(ORDERED_DICT) and arguments == ():
            self.push(OrderedDict())
        elif callee == Known(ORDERED_DICT) and _types(arguments) == [list]:
            self.push(self.ordered(arguments[0]))
        elif callee == Known(REBUILD_TENSOR):
            self.push(_rebuilt_tensor(arguments))
        elif callee == Known(REBUILD_PARAMETER) and _types(arguments) == [StoredTensor, bool, OrderedDict]:
            self.push(arguments[0])
        else:
            raise Refusal("calls something in another way than torch.save does: nothing of it was run.")

    def ordered(self, items: list) -> OrderedDict:
        """Returns an ordered dict of lists of two, as Python 2 wrote it."""
        self.num_items += len(items)  # a list may be recalled, and then costs an instruction and not one an item
        if self.num_items > MAX_INSTRUCTIONS or any(type(item) is not list or len(item) != 2 for item in items):
            raise Refusal("calls something in another way than torch.save does: nothing of it was run.")
        _checked_keys([key for key, _ in items])
        return OrderedDict(items)

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
        """Replaces the description of a storage by the storage."""
        (description,) = self.pop()
        if _types(description) != list(self.described) or description[0] != "storage":
            raise Refusal("describes a storage in another way than torch.save does.")
        _, type_, key, _, elements = description[:5]
        if type_.name not in STORAGE_TYPES:
            raise Refusal(f"takes {type_.name} for a type of storage.")
        self.push(self.storage(type_.name, key, elements))

    def storage(self, type_name: str, key: str, elements: int) -> Storage:
        """Returns the storage of a key, having compared it with the entry that it lies in."""
        if len(key) > LONGEST_NAME or f"data/{key}" not in self.entries:
            raise Refusal(f"lacks the entry data/{shown(key)}: download or copy it again.")
        start, size, checksum = self.entries[f"data/{key}"]
        if elements * np.dtype(STORAGE_TYPES[type_name]).itemsize != size:
            told = f"{shown(elements)} elements of {type_name}"
            raise Refusal(f"declares {told} for data/{shown(key)}, which has {size:,} bytes.")
        return Storage(self.path, self.identity, start, elements, type_name, checksum)


def _types(values: Any) -> list[type]:
    """The types of a tuple's values, and none for what is no tuple; exact, as True is no integer here."""
    return [type(value) for value in values] if type(values) is tuple else []


def _checked_keys(keys: Sequence) -> Sequence:
    """Returns keys that cost nothing to hash: of nested tuples it may take forever."""
    for key in keys:
        if type(key) not in (str, int, float, bool, type(None), Inert):
            raise Refusal(f"uses a {type(key).__name__} as a key, which no checkpoint needs.")
        if type(key) is int and abs(key) >= MAX_INTEGER_KEY:
            raise Refusal(f"uses an integer of {key.bit_length():,} bits as a key, which no checkpoint needs.")
    return keys


def _rebuilt_tensor(arguments: Any) -> StoredTensor:
    """Returns a tensor whose elements all lie in its storage, and are no more than those."""
    wanted = _types(arguments)[:5] == [Storage, int, tuple, tuple, bool] and len(arguments) in (6, 7)
    if not wanted or any(arguments[6:]):  # the seventh would tell of a minus sign that was not yet carried out
        raise Refusal("describes a tensor in another way than torch.save does.")
    storage, offset, shape, strides = arguments[:4]
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Refusal(f"holds a tensor of {len(shape):,} dimensions with {len(strides):,} strides.")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise Refusal("holds a tensor whose offset, shape or strides are no natural numbers.")
    problem = None
    if math.prod(n or 1 for n in shape) > max(storage.elements, MAX_EMPTY if 0 in shape else 1):
        problem = f"but its storage has {storage.elements:,} elements"
    elif offset + extent(shape, strides) > storage.elements:
        problem = f"which lies outside of its storage of {storage.elements:,} elements"
    if problem:  # only now, because great numbers take their time to become text
        told = shown(f"a tensor of shape {shape} with strides {strides} at {offset}")
        raise Refusal(f"declares {told}, {problem}.")
    # A stride that leads nowhere may be any number, also one that numpy cannot hold.
    strides = tuple(stride if n > 1 and 0 not in shape else 0 for n, stride in zip(shape, strides, strict=True))
    return StoredTensor(shape, storage.dtype, storage, offset, strides)


PUSHED = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
PUSHED_TEXT = ("SHORT_BINSTRING", "BINSTRING")  # of Python 2
PUSHED_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
MADE = {"NONE": type(None), "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
OPERATIONS: dict[str, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(PUSHED + PUSHED_TEXT + PUSHED_BYTES, Machine.push),
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
    "BINPUT": Machine.memorize,
    "LONG_BINPUT": Machine.memorize,
    "MEMOIZE": lambda machine, _: machine.memorize(len(machine.memo)),
    "BINGET": Machine.recall,
    "LONG_BINGET": Machine.recall,
    "GLOBAL": lambda machine, name: machine.find(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(*machine.pop(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.new_object(1),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(2),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.find_storage(),
}
