"""Reading checkpoints of PyTorch before 1.6, and refusing damaged and hostile files."""

import random
import struct
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from diffae_jax.runtime.errors import UserError
from diffae_jax.torch_files import instructions
from diffae_jax.torch_files import legacy as torch_legacy
from diffae_jax.torch_files.archive import read_checkpoint
from diffae_jax.torch_files.stored import StoredTensor
from tests.torch_writer import (
    REBUILD,
    STORAGE_TYPES,
    Call,
    Foreign,
    Raw,
    legacy,
    legacy_parts,
    pickled,
    refused_at_once,
    storage,
    write_legacy,
)

DATA = np.arange(24, dtype=np.float32)


def read_back(path, tree):
    write_legacy(path, tree)
    return read_checkpoint(path)


# Valid files


@pytest.mark.parametrize("name", STORAGE_TYPES)
def test_every_dtype_round_trips(tmp_path, name):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    array = np.array([[0, 1, 2], [3, 100, 0.3]]).astype(dtype)
    tensor = read_back(tmp_path / "f", {"w": array})["w"]
    assert isinstance(tensor, StoredTensor)
    np.testing.assert_array_equal(tensor.numpy(), array.astype(np.float32) if name == "bfloat16" else array)


def test_views_and_several_storages_round_trip(tmp_path):
    views = [DATA[6:], np.arange(5), DATA.reshape(4, 6).T, np.zeros((0, 5), np.float32), np.array(1.5), DATA]
    read = read_back(tmp_path / "f", views)
    for tensor, view in zip(read, views, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), view)
    assert read[0].storage == read[2].storage == read[5].storage


def old_text(value):
    """Text as Python 2 wrote it."""
    return Raw(b"U" + bytes([len(value)]) + value.encode())


def test_a_state_dict_of_python_2_is_read(tmp_path):
    items = Raw(pickled([[old_text("lin0.weight"), Raw(pickled(DATA)[0])], [old_text("b"), 3]])[0])
    tree = Raw(pickled(Call(Foreign("collections", "OrderedDict"), (items,)))[0])
    metadata = pickled({old_text("_metadata"): Call(Foreign("collections", "OrderedDict"), ([],))})[0]
    objects = b"\x80\x02" + legacy(tree.instructions + metadata) + b"b."
    (tmp_path / "f").write_bytes(b"".join(legacy_parts(DATA, objects=objects)))
    tree = read_checkpoint(tmp_path / "f")
    assert (type(tree), list(tree), tree["b"]) == (OrderedDict, ["lin0.weight", "b"], 3)
    np.testing.assert_array_equal(tree["lin0.weight"].numpy(), DATA)


# Damaged and hostile files


def of_parts(tree=DATA, **changes):
    return b"".join(legacy_parts(tree, **changes))


def of_objects(described, **changes):
    """A file with this description of its objects and a storage 0 of 24 floats."""
    return of_parts(objects=b"\x80\x02" + legacy(described) + b".", **changes)


def of_tensor(offset, shape, strides, *, elements=24, type_name="FloatStorage", key="0", **changes):
    tensor = Call(REBUILD, (storage(type_name, key, elements), offset, shape, strides, False, OrderedDict()))
    return of_objects(pickled(tensor)[0], **changes)


def pickle_of(value):
    return b"\x80\x02" + pickled(value)[0] + b"."


GOOD = of_parts()
TWICE = [
    Call(REBUILD, (storage("FloatStorage", "0", elements), 0, (2,), (1,), False, OrderedDict())) for elements in (24, 2)
]
ORDERED = Foreign("collections", "OrderedDict")
SYSTEM = Call(Foreign("os", "system"), ("touch marker",))
HUGE = pickled(Call(REBUILD, (storage("FloatStorage", "0", 2**62), 0, (2,), (1,), False, OrderedDict())))[0]
MANY_ITEMS = b"](" + b"](NNe" * 100 + b"e\x85q\0" + pickled(ORDERED)[0] + b"q\x01" + b"h\x01h\0R0" * 20

HOSTILE = {
    "magic alone": (GOOD[:17], "damaged pickle"),
    "another version": (of_parts(version=pickle_of(1000)), "unsupported version.*1.6"),
    "another magic": (of_parts(magic=pickle_of([0x1950A86A20F9469CFC6C])), "unsupported version"),
    "no machine": (of_parts(machine=pickle_of(0)), "unsupported version"),
    "big-endian": (of_parts(machine=pickle_of({"little_endian": False})), "big-endian"),
    "long preface": (of_parts(machine=b"\x80\x02" + b"N0" * 200 + b"}."), "more instructions than the limit of 100"),
    "os.system": (of_objects(pickled(SYSTEM)[0]), "refers to os.system"),
    "os.system in the preface": (of_parts(machine=pickle_of(SYSTEM)), "refers to os.system"),
    "os.system among the keys": (of_parts(keys=pickle_of(SYSTEM)), "refers to os.system"),
    "tensor as the magic": (of_parts(magic=pickle_of([0x1950A86A20F9469CFC6C, DATA])), "contains a storage"),
    "tensor among the keys": (of_parts(keys=b"\x80\x02" + legacy(pickled(DATA)[0]) + b"."), "lacks the entry"),
    "too many instructions": (of_objects(b"N0" * 2000 + b"N"), "more instructions than the limit of 1,000"),
    "text of 2^60 bytes": (of_objects(b"\x8d" + struct.pack("<Q", 2**60)), "more bytes than the limit of 16,777,216"),
    "text of 2^31 bytes": (of_objects(b"T" + struct.pack("<I", 2**31 - 1)), "more bytes than the limit of 16,777,216"),
    "text of -1 bytes": (of_objects(b"T" + struct.pack("<i", -1)), "damaged pickle"),
    "storage of five": (of_parts(objects=pickle_of(DATA)), "contains a storage"),
    "view of a storage": (of_objects(pickled(DATA)[0].replace(b"tQ", b"]tQ")), "contains a storage"),
    "module": (of_objects(pickled(("module", ORDERED, "a", "b"))[0] + b"Q"), "contains a storage"),
    "boolean number of elements": (of_tensor(0, (2,), (1,), elements=True), "contains a storage"),
    "negative elements": (of_tensor(0, (2,), (1,), elements=-24), "declares -24 elements"),
    "long key": (of_tensor(0, (2,), (1,), key="x" * 600), "declares 24 elements for storage xx"),
    "more elements than declared": (
        of_tensor(0, (2,), (1,), elements=23),
        "damaged|24 elements in storage 0.* 23 elements",
    ),
    "fewer elements than declared": (of_tensor(0, (2,), (1,), elements=25), "truncated: storage 0 ends"),
    "huge number of elements": (of_objects(HUGE), "truncated: storage 0 ends at byte"),
    "other storage type": (of_tensor(0, (2,), (1,), type_name="DoubleStorage"), "truncated"),
    "smaller storage type": (of_tensor(0, (2,), (1,), type_name="HalfStorage"), "48 bytes after its last storage"),
    "no storage type": (
        of_objects(pickled(("storage", REBUILD, "0", "cpu", 24))[0] + b"Q"),
        "uses torch._utils._rebuild_tensor_v2 as a storage type",
    ),
    "storage of two sizes": (of_objects(pickled(TWICE)[0]), "declares the storage 0 twice"),
    "wrong number of elements": (of_parts(elements_0=struct.pack("<q", 25)), "has 25 elements in storage 0.* 24"),
    "negative number of elements": (of_parts(elements_0=struct.pack("<q", -1)), "has -1 elements in storage 0"),
    "offset outside": (of_tensor(1, (24,), (1,)), "exceeds its storage of 24 elements"),
    "stride outside": (of_tensor(0, (2,), (24,)), "exceeds its storage of 24 elements"),
    "a key too many": (of_parts(keys=pickle_of(["0", "1"])), "lists 2 storages, which do not match the 1 that"),
    "a key too few": (of_parts(keys=pickle_of([])), "lists 0 storages, which do not match the 1 that"),
    "another key": (of_parts(keys=pickle_of(["1"])), "lists 1 storages, which do not match the 1 that"),
    "a key twice": (of_parts(keys=pickle_of(["0", "0"])), "damaged list of storages"),
    "keys of numbers": (of_parts(keys=pickle_of([0])), "damaged list of storages"),
    "keys as a tuple": (of_parts(keys=pickle_of(("0",))), "damaged list of storages"),
    "bytes after the end": (GOOD + b"x", "1 bytes after its last storage"),
    "no storage": (GOOD[:-104], "truncated: storage 0 ends"),
    "no elements": (GOOD[:-96], "truncated: storage 0 ends"),
    "an element too few": (GOOD[:-1], "truncated: storage 0 ends"),
    "half of the file": (GOOD[: len(GOOD) // 2], "damaged pickle"),
    "ordered dict of threes": (of_objects(pickled(Call(ORDERED, ([[1, 2, 3]],)))[0]), "contains a call"),
    "ordered dict of tuples": (of_objects(pickled(Call(ORDERED, ([(1, 2)],)))[0]), "contains a call"),
    "ordered dict of a key that has no hash": (of_objects(pickled(Call(ORDERED, ([[[], 2]],)))[0]), "list as a key"),
    "ordered dict made 20 times": (of_objects(MANY_ITEMS + b"N"), "contains a call"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly_with_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(instructions, "MAX_INSTRUCTIONS", 1000)
    content, pattern = HOSTILE[name]
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused_at_once(path, pattern)


def test_pickles_over_the_byte_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_legacy, "MAX_PICKLE_BYTES", len(GOOD) // 2)
    (tmp_path / "f").write_bytes(GOOD)
    with pytest.raises(UserError, match=f"more bytes than the limit of {len(GOOD) // 2}"):
        read_checkpoint(tmp_path / "f")


def test_storages_over_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_legacy, "MAX_STORAGES", 2)
    with pytest.raises(UserError, match="more storages than the limit of 2"):
        read_back(tmp_path / "f", [np.arange(3), np.arange(4), np.arange(5)])


def test_a_file_that_changed_after_opening_is_refused(tmp_path):
    tensor = read_back(tmp_path / "f", DATA)
    (tmp_path / "f").write_bytes(GOOD + b"x")
    with pytest.raises(UserError, match="has changed"):
        tensor.numpy()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_damage_raises_only_user_errors(tmp_path):
    path, dice, outcomes = tmp_path / "f", random.Random(0), []
    whole = of_parts({"w": DATA.reshape(4, 6).T, "n": [1, None, 0.5], "v": np.arange(3)})
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            for value in dict(read_checkpoint(path)).values():
                if isinstance(value, StoredTensor):
                    value.numpy()
            outcomes.append("read")
        except UserError:
            outcomes.append("refused")
    assert {"read", "refused"} == set(outcomes)
