"""Reading PyTorch checkpoints, and refusing damaged and hostile files with one sentence."""

import ast
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from diffae_jax.runtime.errors import UserError
from diffae_jax.torch_files import archive as torch_zip
from diffae_jax.torch_files import instructions, stored
from diffae_jax.torch_files import legacy as torch_legacy
from diffae_jax.torch_files.archive import read_checkpoint
from diffae_jax.torch_files.instructions import Inert
from diffae_jax.torch_files.stored import StoredTensor
from tests.environment import ROOT
from tests.torch_writer import (
    REBUILD,
    STORAGE_TYPES,
    Call,
    Entry,
    Foreign,
    checkpoint_entries,
    pickled,
    refused_at_once,
    storage,
    write_checkpoint,
    write_zip,
)

FIXTURE = ROOT / "tests" / "parity" / "mini16"
DATA = np.arange(24, dtype=np.float32)
LIGHTNING = Foreign("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")


def read_back(path, tree):
    write_checkpoint(path, tree)
    return read_checkpoint(path)


def read_pickle(path, data):
    write_zip(path, checkpoint_entries(data))
    return read_checkpoint(path)


# Valid files


@pytest.mark.parametrize("name", STORAGE_TYPES)
def test_every_dtype_round_trips(tmp_path, name):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)
    array = np.array([[0, 1, 2], [-3, 100, 0.3]]).astype(np.uint8 if name == "uint8" else dtype).astype(dtype)
    tensor = read_back(tmp_path / "f", {"w": array})["w"]
    expected = array.astype(np.float32) if name == "bfloat16" else array
    assert isinstance(tensor, StoredTensor)
    assert (tensor.shape, tensor.dtype) == (array.shape, expected.dtype)
    read = tensor.numpy()
    assert (read.dtype, read.flags.c_contiguous, read.flags.writeable) == (expected.dtype, True, True)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    "view",
    [
        DATA,
        DATA.reshape(4, 6).T,
        DATA.reshape(2, 3, 4).transpose(2, 0, 1),
        DATA.reshape(4, 6)[1:3, 2:5],
        DATA[5::3],
        DATA[7:7],
        DATA[24:],
        DATA[3:4].reshape(()),
        DATA.reshape(1, 24, 1),
        np.zeros((0, 5), np.float32),
        np.zeros((3, 0, 2), bool),
        np.array(True),
        np.array(1.5, ml_dtypes.bfloat16),
        np.asfortranarray(DATA.reshape(4, 6)),
    ],
    ids=lambda view: f"{view.dtype}{view.shape}{view.strides}",
)
def test_every_view_of_a_storage_round_trips(tmp_path, view):
    tensor = read_back(tmp_path / "f", [view])[0]
    read = tensor.numpy()
    assert type(read) is np.ndarray
    assert read.shape == tensor.shape == view.shape
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, view)


def test_tensors_share_a_storage_but_not_their_arrays(tmp_path):
    first, second, whole = read_back(tmp_path / "f", [DATA[:12], DATA[6:], DATA])
    assert first.storage == second.storage == whole.storage
    array = whole.numpy()
    array[:] = -1
    np.testing.assert_array_equal(first.numpy(), DATA[:12])
    np.testing.assert_array_equal(second.numpy(), DATA[6:])


def test_unused_strides_may_be_any_number(tmp_path):
    tensor = Call(REBUILD, (storage("FloatStorage", "0", 24), 3, (1, 2), (2**80, 5), True, OrderedDict()))
    entries = checkpoint_entries(b"\x80\x02" + pickled(tensor)[0] + b".", [DATA.view(np.uint8)])
    write_zip(tmp_path / "f", entries)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "f").numpy(), DATA[[[3, 8]]])


def test_a_parameter_and_an_ordered_dict_with_state_are_read(tmp_path):
    parameter = Call(Foreign("torch._utils", "_rebuild_parameter"), (DATA, True, OrderedDict()))
    instructions, storages = pickled(OrderedDict(weight=parameter))
    metadata = pickled({"_metadata": {"": {"version": 1}}})[0]  # state_dict() keeps it as an attribute
    write_zip(tmp_path / "f", checkpoint_entries(b"\x80\x02" + instructions + metadata + b"b.", storages))
    tree = read_checkpoint(tmp_path / "f")
    assert type(tree) is OrderedDict
    np.testing.assert_array_equal(tree["weight"].numpy(), DATA)


PLAIN = {
    "numbers": [None, True, False, 0, 255, 256, 65536, -1, 2**40, -(2**200), 0.5, float("inf")],
    "text": ["", "a", "x" * 300, "été \U0001f600"],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [{}]}, 3: {1.5: None}},
}
NEWER = {"bytes": [b"", b"a", b"x" * 300], "sets": [set(), {1, 2}, frozenset({"a"})]}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    tree = {**PLAIN, **(NEWER if protocol >= 4 else {}), "twice": [PLAIN["text"], PLAIN["text"]]}
    assert read_pickle(tmp_path / "f", pickle.dumps(tree, protocol)) == tree


def test_stack_instructions_are_executed(tmp_path):
    assert read_pickle(tmp_path / "f", b"\x80\x04(K\x01K\x022000]K\x07a(K\x01K\x021.") == [7]
    assert read_pickle(tmp_path / "f", b"\x80\x05K\x0520(0\x96\x01\0\0\0\0\0\0\0a.") == bytearray(b"a")


def test_a_list_that_contains_itself_is_read(tmp_path):
    tree = read_pickle(tmp_path / "f", b"\x80\x02]q\0h\0a2a.")
    assert tree[0] is tree
    assert tree[1] is tree


def test_classes_of_lightning_are_stand_ins(tmp_path):
    tree = read_back(tmp_path / "f", {LIGHTNING: {"best": 1}})
    (key,) = tree
    assert type(key) is Inert
    assert key.name == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert tree[key] == {"best": 1}


@pytest.mark.parametrize("module", ["pytorch_lightning", "lightning.pytorch.utilities", "lightning_fabric.x"])
@pytest.mark.parametrize("call", [b")R", b")\x81", b")}\x92"])
def test_instances_of_stand_ins_hold_their_items(tmp_path, module, call):
    made = b"c" + f"{module}\nAttributeDict\n".encode() + call
    tree = read_pickle(tmp_path / "f", b"\x80\x04" + made + b"(X\x02\0\0\0lrK\x03u}X\x01\0\0\0aK\x01sb.")
    assert type(tree) is Inert
    assert tree.name == f"{module}.AttributeDict"
    assert dict(tree) == {"lr": 3}


def test_official_files_are_read():
    tree = read_checkpoint(FIXTURE / "autoenc_latent.ckpt")
    assert [key.name for key in tree["callbacks"]] == [".".join(LIGHTNING)]
    arrays = {name: tensor.numpy() for name, tensor in tree["state_dict"].items()}
    assert all(np.isfinite(array).all() for array in arrays.values())
    expected, latent = np.load(FIXTURE / "expected.npz"), read_checkpoint(FIXTURE / "latent.pkl")
    for name in ("conds_mean", "conds_std"):
        np.testing.assert_array_equal(latent[name].numpy(), expected[name])
    for name in ("ddpm.ckpt", "classifier.ckpt"):
        assert "state_dict" in read_checkpoint(FIXTURE / name)


# Damaged and hostile files


def of_bytes(content):
    return lambda path: path.write_bytes(content)


def of_pickle(instructions):
    """A file with these pickle instructions and a storage 0 of 24 floats."""
    pickle = b"\x80\x04" + instructions + b"."
    return lambda path: write_zip(path, checkpoint_entries(pickle, [DATA.view(np.uint8)]))


def of_tree(tree):
    return of_pickle(pickled(tree)[0])


def of_tensor(offset, shape, strides, *, elements=24, type_name="FloatStorage", key="0", rest=()):
    reference = storage(type_name, key, elements)
    return of_tree(Call(REBUILD, (reference, offset, shape, strides, False, OrderedDict(), *rest)))


def of_entries(*more, **changes):
    """A valid file of one tensor with more entries, and changes to the entry of its storage."""

    def write(path):
        instructions, storages = pickled(DATA)
        entries = checkpoint_entries(b"\x80\x02" + instructions + b".", storages)
        entries = [entry._replace(**changes) if entry.name == "archive/data/0" else entry for entry in entries]
        write_zip(path, [*entries, *more])

    return write


def of_cut(kept):
    """A valid file, cut to a fraction or a number of its bytes (negative: bytes removed)."""

    def write(path):
        write_checkpoint(path, DATA)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else kept])

    return write


def of_patched(position, content, size=100):
    """A valid file with overwritten bytes. `position` counts from the end."""

    def write(path):
        write_checkpoint(path, np.zeros(size, np.uint8))
        whole = bytearray(path.read_bytes())
        start = len(whole) + position
        whole[start : start + len(content)] = content
        path.write_bytes(whole)

    return write


def of_local_header(position, content):
    """A valid file whose storage has a local header that differs from the directory."""

    def write(path):
        write_checkpoint(path, DATA)
        whole = bytearray(path.read_bytes())
        start = whole.index(b"archive/data/0") - 30 + position
        whole[start : start + len(content)] = content
        path.write_bytes(whole)

    return write


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def long_text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TOUCH = ("touch marker",)
SYSTEM = Call(Foreign("os", "system"), TOUCH)
GETATTR = Call(Foreign("builtins", "getattr"), (Foreign("os", "path"), "os"))
BOMB = b")" + b"2\x86" * 60  # a tuple of itself twice, 60 times over: its hash takes 2^60 steps

HOSTILE = {
    "empty": (of_bytes(b""), "is empty"),
    "web page": (of_bytes(b"\n<!DOCTYPE html><html>"), "web page"),
    "not a zip": (of_bytes(b"\x89PNG" + bytes(2000)), "is not a file written by torch.save"),
    **{
        f"cut to {kept}": (of_cut(kept), r"truncated or damaged \(size: |is not a file written by torch.save")
        for kept in (3, 30, 0.5, 0.9, -1, -22)
    },
    "no data.pkl": (lambda path: write_zip(path, [Entry("a/version", b"3")]), "without data.pkl"),
    "TorchScript": (of_entries(Entry("archive/constants.pkl", b"")), "TorchScript"),
    "TorchScript code": (of_entries(Entry("archive/code/x.py", b"")), "TorchScript"),
    "two roots": (of_entries(Entry("other/data.pkl", b"N.")), "2 root folders"),
    "two entries of a name": (of_entries(Entry("archive/data.pkl", b"N.")), "5 entries with only 4 different names"),
    "big-endian": (
        lambda path: write_zip(path, [Entry("a/data.pkl", b"N."), Entry("a/byteorder", b"big")]),
        "big-endian",
    ),
    "compressed pickle": (lambda path: write_zip(path, [Entry("a/data.pkl", b"N.", method=8)]), "compressed"),
    "compressed storage": (of_entries(method=8, expanded=10**9), "compressed or encrypted entry, archive/data/0"),
    "expands": (of_entries(expanded=10**9), "compressed or encrypted entry, archive/data/0"),
    "encrypted": (of_entries(flags=0x809), "encrypted"),
    "another local name": (of_entries(local_name="archive/data/1"), "no entry archive/data/0"),
    "no local signature": (of_local_header(0, b"PK\1\2"), "no entry archive/data/0"),
    "encrypted in the local header": (of_local_header(6, b"\x09"), "no entry archive/data/0"),
    "compressed in the local header": (of_local_header(8, b"\x08"), "no entry archive/data/0"),
    "size beyond the end": (of_entries(size=10**6), "truncated: archive/data/0 ends"),
    "overlapping": (of_entries(size=96 + 64), "begins inside another"),
    "wrong offset": (of_entries(offset=3), "begins inside another|no entry"),
    "offset beyond the end": (of_entries(offset=2**31), "truncated: .* begins at byte 2,147,483,648"),
    "large directory": (of_patched(-10, struct.pack("<L", 3 * 2**20), 2**22), "directory of 3,145,728 bytes"),
    "wrong directory": (of_patched(-6, struct.pack("<L", 2**31)), "damaged"),
    "os.system": (of_tree(SYSTEM), "refers to os.system"),
    "posix.system": (of_tree(Call(Foreign("posix", "system"), TOUCH)), "refers to posix.system"),
    "eval": (of_tree(Call(Foreign("builtins", "eval"), ("open('marker', 'w')",))), "refers to builtins.eval"),
    "getattr": (of_tree(GETATTR), "refers to builtins.getattr"),
    "numpy": (of_tree(Foreign("numpy.core.multiarray", "_reconstruct")), "numpy.core.multiarray._reconstruct"),
    "other torch": (of_tree(Foreign("torch._utils", "_rebuild_tensor_v3")), "torch._utils._rebuild_tensor_v3"),
    "like Lightning": (of_tree(Foreign("pytorch_lightning_x", "f")), "pytorch_lightning_x.f"),
    "long name": (of_tree(Foreign("x" * 10**6, "f")), "refers to x{120},"),
    "name of two lines": (of_pickle(text("a\nb") + text("c") + b"\x93"), r"refers to a\\nb.c"),
    "stack global": (of_pickle(text("os") + text("system") + b"\x93" + text("touch marker") + b"\x85R"), "os.system"),
    "stack global of numbers": (of_pickle(b"K\x01K\x02\x93"), "name of a global that is not text"),
    "within a stand-in": (of_tree(Call(LIGHTNING, (SYSTEM,))), "refers to os.system"),
    "state of a stand-in": (of_pickle(pickled(Call(LIGHTNING, ()))[0] + pickled(SYSTEM)[0] + b"b"), "os.system"),
    "new object": (of_pickle(pickled(Foreign("subprocess", "Popen"))[0] + b")\x81"), "refers to subprocess.Popen"),
    "new ordered dict": (of_pickle(b"ccollections\nOrderedDict\n)\x81"), "uses a Known as a Inert"),
    "state of a dict": (of_pickle(b"}}b"), "uses a dict as a Inert"),
    "call of a string": (of_pickle(text("os.system") + text("touch marker") + b"\x85R"), "contains a call"),
    "call of a storage type": (of_tree(Call(Foreign("torch", "FloatStorage"), (10**12,))), "contains a call"),
    "ordered dict of items": (of_tree(Call(Foreign("collections", "OrderedDict"), ([("a", 1)],))), "contains a call"),
    "parameter of a list": (
        of_tree(Call(Foreign("torch._utils", "_rebuild_parameter"), ([], True, 1))),
        "contains a call",
    ),
    **{
        name: (of_pickle(instructions), f"instruction {name},")
        for name, instructions in {
            "EXT1": b"\x82\x01",
            "EXT2": b"\x83\x01\0",
            "EXT4": b"\x84\x01\0\0\0",
            "INST": b"(" + text("touch marker") + b"ios\nsystem\n",
            "OBJ": b"(" + text("os") + b"o",
            "PERSID": b"P0\n",
            "NEXT_BUFFER": b"\x97",
            "READONLY_BUFFER": b"N\x98",
            "LONG4": b"\x8b\xff\xff\0\0" + bytes(65535),
            "INT": b"I12\n",
            "STRING": b"S'a'\n",
        }.items()
    },
    "LONG4 of 2 GB": (of_pickle(b"\x8b\xff\xff\xff\x7f1"), "damaged data.pkl"),
    "text of 2^60 bytes": (of_pickle(b"\x8d" + struct.pack("<Q", 2**60)), "damaged data.pkl"),
    "bytes of 2^64 bytes": (of_pickle(b"\x8e" + bytes([255] * 8)), "damaged data.pkl"),
    "unknown instruction": (of_pickle(b"\xff"), "damaged data.pkl"),
    "no STOP": (lambda path: write_zip(path, checkpoint_entries(b"\x80\x02N")), "damaged data.pkl"),
    "wrong text": (of_pickle(b"X\x02\0\0\0\xff\xff"), "damaged data.pkl"),
    "empty pickle": (of_pickle(b""), "empty stack"),
    "below a mark": (of_pickle(b"N(\x85"), "empty stack"),
    "no mark": (of_pickle(b"Nt"), "mark"),
    "unknown memo entry": (of_pickle(b"h\x05"), "uses object 5"),
    "append to a tuple": (of_pickle(b")Na"), "uses a tuple as a list"),
    "item of a list": (of_pickle(b"]NNs"), "uses a list as a dict"),
    "key without a value": (of_pickle(b"}(Nu"), "key that has no value"),
    "unhashable key": (of_pickle(b"}]Ns"), "list as a key"),
    "key with a slow hash": (of_pickle(b"}" + BOMB + b"Ns"), "tuple as a key"),
    "set element with a slow hash": (of_pickle(b"\x8f(" + BOMB + b"\x90"), "tuple as a key"),
    "frozen set with a slow hash": (of_pickle(b"(" + BOMB + b"\x91"), "tuple as a key"),
    "keys with equal hashes": (of_tree({i * (2**61 - 1): None for i in range(5)}), "integer of 61 bits"),
    "tensor as a key": (of_pickle(b"}" + pickled(DATA)[0] + b"Ns"), "StoredTensor as a key"),
    "too many instructions": (of_pickle(b"N0" * 2000), "more instructions than the limit of 1,000"),
    "large pickle": (of_pickle(bytes(torch_zip.MAX_PICKLE_BYTES)), "16,777,219 bytes"),
    "number of elements": (of_tensor(0, (24,), (1,), elements=25), "25 elements of torch.FloatStorage.*96 bytes"),
    "too few elements": (of_tensor(0, (2,), (1,), elements=2), "2 elements of torch.FloatStorage.*96 bytes"),
    "other storage type": (of_tensor(0, (24,), (1,), type_name="DoubleStorage"), "24 elements of torch.DoubleStorage"),
    "unknown storage type": (of_tensor(0, (2,), (1,), type_name="QInt8Storage"), "refers to torch.QInt8Storage"),
    "missing storage": (of_tensor(0, (2,), (1,), key="7"), "lacks the entry data/7"),
    "key outside the archive": (
        of_tensor(0, (2,), (1,), key="../../../etc/passwd"),
        "lacks the entry data/../../../etc/passwd",
    ),
    "boolean number of elements": (of_tensor(0, (2,), (1,), elements=True), "contains a storage"),
    "storage of four": (
        of_pickle(pickled(("storage", Foreign("torch", "FloatStorage"), "0", 24))[0] + b"Q"),
        "contains a storage",
    ),
    "storage as a list": (of_pickle(b"]Q"), "contains a storage"),
    "storage of no storage type": (
        of_pickle(pickled(("storage", REBUILD, "0", "cpu", 24))[0] + b"Q"),
        "as a storage type",
    ),
    "module as storage": (of_pickle(pickled(("module", REBUILD, "0", "cpu", 24))[0] + b"Q"), "contains a storage"),
    "offset outside": (of_tensor(1, (24,), (1,)), "exceeds its storage of 24 elements"),
    "stride outside": (of_tensor(0, (2,), (24,)), "exceeds its storage of 24 elements"),
    "stride of 2^2000": (of_tensor(0, (2,), (2**2000,)), "exceeds its storage"),
    "negative offset": (of_tensor(-1, (2,), (1,)), "natural numbers"),
    "negative size": (of_tensor(0, (-2, -3), (1, 1)), "natural numbers"),
    "negative stride": (of_tensor(23, (24,), (-1,)), "natural numbers"),
    "size of a boolean": (of_tensor(0, (True,), (1,)), "natural numbers"),
    "size of a float": (of_tensor(0, (2.0,), (1,)), "natural numbers"),
    "size as a list": (of_tensor(0, [2], (1,)), "contains a tensor"),
    "stride 0": (of_tensor(0, (10**6, 10**6), (0, 0)), r"shape \(1000000, 1000000\).*storage has 24 elements"),
    "overlapping strides": (of_tensor(0, (5, 5), (1, 1)), "storage has 24 elements"),
    "empty and vast": (of_tensor(0, (0, 2**62), (1, 1)), "storage has 24 elements"),
    "empty tensor outside": (of_tensor(25, (0,), (1,)), "exceeds its storage"),
    "dimensions": (of_tensor(0, (1,) * 300, (1,) * 300), "300 dimensions"),
    "too few strides": (of_tensor(0, (2, 2), (1,)), "2 dimensions with 1 strides"),
    "lazy negation": (of_tensor(0, (2,), (1,), rest=({"neg": True},)), "contains a tensor"),
    "eight arguments": (of_tensor(0, (2,), (1,), rest=({}, {})), "contains a tensor"),
    "tensor without arguments": (of_tree(Call(REBUILD, ())), "contains a tensor"),
    "tensor of a list": (of_pickle(pickled(REBUILD)[0] + b"]R"), "contains a tensor"),
    "tensor of a string": (of_tree(Call(REBUILD, ("0", 0, (), (), False, None))), "contains a tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_quickly_with_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(instructions, "MAX_INSTRUCTIONS", 1000)  # type checks make each instruction slow here
    make, pattern = HOSTILE[name]
    path = tmp_path / "model.ckpt"
    make(path)
    sentence = refused_at_once(path, pattern)
    assert len(sentence) < len(str(path)) + 250


def test_pickle_would_execute_the_hostile_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02" + pickled(SYSTEM)[0] + b".")
    assert (tmp_path / "marker").exists()


HUGE = (2**2030,) * 8  # strides that are never used
WITHIN_LIMITS = {  # (made once, repeated to the limit, instructions in each repetition)
    "one long global": (text("f") + b"q\0" + long_text("pytorch_lightning." + "x" * 15_000_000), b"h\1h\0\x930", 4),
    "globals": (text("f") + b"q\0" + text("pytorch_lightning.x"), b"h\1h\0\x930", 4),
    "tensors of huge strides": (
        pickled(REBUILD)[0]
        + b"q\0"
        + pickled((storage("FloatStorage", "0", 24), 0, (1,) * 8, HUGE, True, OrderedDict()))[0],
        b"h\0h\1R0",
        4,
    ),
    "storages": (pickled(("storage", Foreign("torch", "FloatStorage"), "0", "cpu", 24))[0], b"h\1Q0", 3),
}


def test_a_file_at_the_instruction_limit_takes_a_second(tmp_path):
    for name, (made, repeated, count) in WITHIN_LIMITS.items():
        pickle = b"\x80\x04" + made + b"q\1(" + repeated * (instructions.MAX_INSTRUCTIONS // count + 1) + b"]."
        write_zip(tmp_path / name, checkpoint_entries(pickle, [DATA.view(np.uint8)]))
    program = """
import sys, time
from diffae_jax.runtime.errors import UserError
from diffae_jax.torch_files.archive import read_checkpoint
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        read_checkpoint(path)
    except UserError as error:
        print(time.process_time() - start, error)
"""  # in a subprocess, because the type checks of the tests would take most of the time
    command = [sys.executable, "-c", program, *(tmp_path / name for name in WITHIN_LIMITS)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(WITHIN_LIMITS)
    for line in lines:
        assert re.search("more instructions than the limit of 200,000|name of 15,000,019 characters", line), line
        assert float(line.split()[0]) < 2, line


def test_a_storage_with_a_long_name_is_refused(tmp_path):
    key = "x" * 60_000
    described = pickled(("storage", Foreign("torch", "FloatStorage"), key, "cpu", 24))[0]
    pickle = b"\x80\x04" + described + b"q\1(" + b"h\1Q0" * 60_000 + b"]."
    write_zip(tmp_path / "f", [*checkpoint_entries(pickle), Entry(f"archive/data/{key}", DATA.view(np.uint8))])
    with pytest.raises(UserError, match="lacks the entry data/xxx"):
        read_checkpoint(tmp_path / "f")


def test_too_many_entries_are_refused(tmp_path):
    write_zip(tmp_path / "f", [Entry(f"a/{i}", b"") for i in range(torch_zip.MAX_ENTRIES + 1)])
    with pytest.raises(UserError, match="20,001 entries"):
        read_checkpoint(tmp_path / "f")


def test_missing_files_folders_and_devices_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "f")
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), tmp_path / "pipe"):
        with pytest.raises(UserError, match="is a folder or device"):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "has changed"),
        (lambda path: write_checkpoint(path, DATA + 1), "has changed"),
        (lambda path: path.unlink(), "can no longer be read"),
    ],
    ids=["longer", "shorter", "another", "gone"],
)
def test_a_file_that_changed_after_opening_is_refused(tmp_path, change, pattern):
    tensor = read_back(tmp_path / "f", DATA)
    time.sleep(0.02)  # file times have steps of a few milliseconds
    change(tmp_path / "f")
    with pytest.raises(UserError, match=pattern):
        tensor.numpy()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # from pickletools, for text that is refused
def test_random_damage_raises_only_user_errors(tmp_path):
    instructions, storages = pickled({LIGHTNING: {}, "w": DATA.reshape(4, 6).T, "n": [1, None, 0.5]})
    path, dice = tmp_path / "f", random.Random(0)
    write_zip(path, checkpoint_entries(b"\x80\x02" + instructions + b".", storages))
    whole, outcomes = path.read_bytes(), []
    for _ in range(1500):
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


def test_the_reader_imports_no_pickle():
    for module in (instructions, stored, torch_zip, torch_legacy):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not names & {"pickle", "_pickle", "marshal", "shelve", "importlib"}
        assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"eval", "exec", "__import__"}
