"""Interprets the pickle instructions that build plain data and tensors, and no others.

Unpickling can call any Python function. This small stack machine calls no function that a file
names. It supports plain data and tensors, and refuses everything else by name.
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
from diffae_jax.torch_files.stored import GET_AGAIN, STORAGE_TYPES, Entry, Refusal, Storage, StoredTensor, extent

# A tensor takes about 30 instructions. Refusing the worst file at these limits takes a second.
MAX_INSTRUCTIONS = 200_000
MAX_PICKLE_BYTES = 16 * 2**20
LONGEST_NAME = 500  # limit for names of globals and storages, because each use copies the text
MAX_DIMENSIONS = 8
MAX_EMPTY = 2**32  # product of a tensor's nonzero dimensions if one dimension is 0
MAX_INTEGER_KEY = 2**60  # larger integers can have equal hashes, which makes a dict of n keys take n^2 steps

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
ORDERED_DICT = "collections.OrderedDict"
KNOWN_NAMES = {REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, *STORAGE_TYPES}
INERT_PACKAGES = ("pytorch_lightning.", "lightning.pytorch.", "lightning_fabric.")


class Inert(dict):
    """A stand-in without behavior for a class of Lightning, or for an instance with its items.

    `name` is the full name of the class, such as "module.Class". Instances are compared by
    identity, so they can be keys.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, name: str):
        super().__init__()
        self.name = name


@dataclasses.dataclass(frozen=True)
class Known:
    """A supported global of PyTorch or Python. `Machine.call` implements what calling it does."""

    name: str


class Machine:
    """A stack machine for pickle instructions that build plain data and tensors."""

    pickle_name = "data.pkl"  # in error messages
    # Types of the fields that describe a storage: kind, type, key, device, number of elements.
    storage_fields: tuple[type, ...] = (str, Known, str, str, int)

    def __init__(self, path: Path, identity: tuple[int, ...], entries: dict[str, Entry]):
        self.path, self.identity, self.entries = path, identity, entries
        self.frames: list[list] = [[]]  # a mark begins a frame; values below it are out of reach
        self.memo: dict[int, Any] = {}
        self.num_items = 0  # of all ordered dicts that were built from lists

    def run(self, pickle: bytes | io.BytesIO, limit: int | None = None) -> Any:
        """Returns the object that a pickle describes.

        Reads a stream only to the end of the pickle. Raises Refusal after `limit` instructions,
        and for every instruction that `torch.save` does not need.
        """
        limit = MAX_INSTRUCTIONS if limit is None else limit
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
                if opcode.name == "STOP":
                    return self.pop()[0]
                if count >= limit:
                    raise Refusal(
                        f"has a {self.pickle_name} with more instructions than the limit of {limit:,}. {GET_AGAIN}"
                    )
                if opcode.name not in OPERATIONS:
                    raise Refusal(f"uses the pickle instruction {opcode.name}, which no checkpoint needs. {GET_AGAIN}")
                OPERATIONS[opcode.name](self, argument)
        except (ValueError, OverflowError, MemoryError) as error:  # of genops; its text may contain the entire file
            raise Refusal(f"has a damaged {self.pickle_name}. {GET_AGAIN}") from error
        raise AssertionError("genops ends with STOP or raises")

    def pop(self, count: int = 1) -> tuple:
        """Removes and returns values from the stack, but none below the last mark."""
        frame = self.frames[-1]
        if len(frame) < count:
            raise Refusal(f"has a damaged {self.pickle_name}, which reads from an empty stack. {GET_AGAIN}")
        values = tuple(frame[len(frame) - count :])
        del frame[len(frame) - count :]
        return values

    def pop_frame(self) -> list:
        """Removes and returns all values above the last mark."""
        if len(self.frames) == 1:
            raise Refusal(f"has a damaged {self.pickle_name}, which uses a mark that was not set. {GET_AGAIN}")
        return self.frames.pop()

    def discard(self) -> None:
        """Removes the last value or mark."""
        if len(self.frames) > 1 and not self.frames[-1]:
            self.frames.pop()  # POP also removes a mark
        else:
            self.pop()

    def push(self, value: Any) -> None:
        """Pushes a value on the stack."""
        self.frames[-1].append(value)

    def top(self, *types: type) -> Any:
        """Returns the top value without removing it. Raises Refusal if its type is not listed."""
        (value,) = self.pop()
        self.push(value)
        if types and type(value) not in types:
            raise Refusal(
                f"has a damaged {self.pickle_name}, which uses a {type(value).__name__} as a {types[0].__name__}. "
                f"{GET_AGAIN}"
            )
        return value

    def recall(self, index: int) -> None:
        """Pushes an object from the memo."""
        if index not in self.memo:
            raise Refusal(
                f"has a damaged {self.pickle_name}, which uses object {index:,} before it exists. {GET_AGAIN}"
            )
        self.push(self.memo[index])

    def memorize(self, index: int) -> None:
        """Stores the top value in the memo."""
        self.memo[index] = self.top()

    def extend(self, values: Sequence) -> None:
        """Appends values to the list on top of the stack."""
        self.top(list).extend(values)

    def add(self, values: Sequence) -> None:
        """Adds values to the set on top of the stack."""
        self.top(set).update(_checked_keys(values))

    def update(self, values: Sequence) -> None:
        """Adds alternating keys and values to the dict on top of the stack."""
        target = self.top(dict, OrderedDict, Inert)
        if len(values) % 2:
            raise Refusal(f"has a damaged {self.pickle_name}, with a key that has no value. {GET_AGAIN}")
        target.update(zip(_checked_keys(values[::2]), values[1::2], strict=True))

    def find(self, module: Any, name: Any) -> None:
        """Pushes a stand-in for a global. The global is matched by name and never imported."""
        if type(module) is not str or type(name) is not str:
            raise Refusal(f"has a damaged {self.pickle_name}, with the name of a global that is not text. {GET_AGAIN}")
        if len(module) + len(name) > LONGEST_NAME:
            start = shown(f"{module[:LONGEST_NAME]}.{name[:LONGEST_NAME]}")
            raise Refusal(f"refers to {start}, a name of {len(module) + len(name):,} characters. Nothing was executed.")
        full_name = f"{module}.{name}"
        if full_name in KNOWN_NAMES:
            self.push(Known(full_name))
        elif f"{module}.".startswith(INERT_PACKAGES):
            self.push(Inert(shown(full_name)))
        else:
            raise Refusal(
                f"refers to {shown(full_name)}, which is neither plain data nor a tensor. Nothing was executed."
            )

    def call(self) -> None:
        """Calls a supported global, in the form that `torch.save` writes, or a stand-in."""
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
            raise Refusal("contains a call that torch.save does not write. Nothing was executed.")

    def ordered(self, items: list) -> OrderedDict:
        """Returns an ordered dict of a list of [key, value] lists, as Python 2 wrote it."""
        self.num_items += len(items)  # one instruction can repeat a long list
        if self.num_items > MAX_INSTRUCTIONS or any(type(item) is not list or len(item) != 2 for item in items):
            raise Refusal("contains a call that torch.save does not write. Nothing was executed.")
        _checked_keys([key for key, _ in items])
        return OrderedDict(items)

    def new_object(self, arguments: int) -> None:
        """Replaces a stand-in and its arguments with an instance of the stand-in."""
        self.pop(arguments)
        name = self.top(Inert).name
        self.pop()
        self.push(Inert(name))

    def build(self) -> None:
        """Drops the state of a stand-in or of a state_dict(), whose state is module versions."""
        self.pop()
        self.top(Inert, OrderedDict)

    def find_storage(self) -> None:
        """Replaces the description of a storage with the storage."""
        (description,) = self.pop()
        if _types(description) != list(self.storage_fields) or description[0] != "storage":
            raise Refusal(f"contains a storage that torch.save does not write. {GET_AGAIN}")
        _, type_, key, _, elements = description[:5]
        if type_.name not in STORAGE_TYPES:
            raise Refusal(f"uses {type_.name} as a storage type. {GET_AGAIN}")
        self.push(self.storage(type_.name, key, elements))

    def storage(self, type_name: str, key: str, elements: int) -> Storage:
        """Returns the storage of a key. Raises Refusal if its size is not that of its entry."""
        if len(key) > LONGEST_NAME or f"data/{key}" not in self.entries:
            raise Refusal(f"lacks the entry data/{shown(key)}. {GET_AGAIN}")
        start, size, checksum = self.entries[f"data/{key}"]
        if elements * np.dtype(STORAGE_TYPES[type_name]).itemsize != size:
            declared = f"{shown(elements)} elements of {type_name}"
            raise Refusal(f"declares {declared} for data/{shown(key)}, which has {size:,} bytes. {GET_AGAIN}")
        return Storage(self.path, self.identity, start, elements, type_name, checksum)


def _types(values: Any) -> list[type]:
    """Returns the exact types of a tuple's values, or [] for any other object."""
    return [type(value) for value in values] if type(values) is tuple else []


def _checked_keys(keys: Sequence) -> Sequence:
    """Returns the keys. Raises Refusal if hashing a key could take long, as for nested tuples."""
    for key in keys:
        if type(key) not in (str, int, float, bool, type(None), Inert):
            raise Refusal(f"uses a {type(key).__name__} as a key, which no checkpoint needs. {GET_AGAIN}")
        if type(key) is int and abs(key) >= MAX_INTEGER_KEY:
            raise Refusal(
                f"uses an integer of {key.bit_length():,} bits as a key, which no checkpoint needs. {GET_AGAIN}"
            )
    return keys


def _rebuilt_tensor(arguments: Any) -> StoredTensor:
    """Returns a tensor. Raises Refusal if it does not fit into its storage."""
    has_fields = _types(arguments)[:5] == [Storage, int, tuple, tuple, bool] and len(arguments) in (6, 7)
    if not has_fields or any(arguments[6:]):  # the seventh marks lazy conjugation or negation
        raise Refusal(f"contains a tensor that torch.save does not write. {GET_AGAIN}")
    storage, offset, shape, strides = arguments[:4]
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Refusal(f"has a tensor of {len(shape):,} dimensions with {len(strides):,} strides. {GET_AGAIN}")
    if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise Refusal(f"has a tensor whose offset, shape or strides are not natural numbers. {GET_AGAIN}")
    problem = None
    if math.prod(n or 1 for n in shape) > max(storage.elements, MAX_EMPTY if 0 in shape else 1):
        problem = f"but its storage has {storage.elements:,} elements"
    elif offset + extent(shape, strides) > storage.elements:
        problem = f"which exceeds its storage of {storage.elements:,} elements"
    if problem:  # formatted only if needed, because formatting huge numbers is slow
        declared = shown(f"a tensor of shape {shape} with strides {strides} at {offset}")
        raise Refusal(f"declares {declared}, {problem}. {GET_AGAIN}")
    # The stride of an axis of size 1 is never used and may exceed what numpy can represent.
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
