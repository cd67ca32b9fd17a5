"""Reads the text of a compiled program: kernels with FLOP and bytes, and collectives.

XLA reports no costs for a GPU or TPU that is not there, but the text of the program names each
kernel with its shapes.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s4": 1, "u4": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
NO_KERNEL = {  # these move nothing
    "parameter",
    "constant",
    "bitcast",
    "tuple",
    "get-tuple-element",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
}
HOST_TRANSFERS = {"infeed", "outfeed", "send", "recv"}
READS_A_PART = {"slice", "dynamic-slice", "gather"}
ON_CHIP = "S(1)"  # marks arrays in the fast memory of a TPU core

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERANDS = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations)=\{?%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=|ensions":)[{\[]([\d,"]*)[}\]]')  # of XLA and of cuBLAS


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...], bool], ...]  # of the result: (type, sizes, whether on chip)
    operands: tuple[str, ...]
    attributes: str
    value: str  # of a constant

    @property
    def size(self) -> int:
        """Bytes of the result in device memory."""
        return sum(_bytes(shape) for shape in self.shapes)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each array of the result, wherever it is."""
        return [_bytes((kind, sizes, False)) for kind, sizes, _ in self.shapes]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An operation that runs on one device.

    Attributes:
        name: Its name in the program.
        opcode: What it is, such as "fusion".
        flops: FLOP of its convolutions and matrix products.
        bytes: What it reads from and writes to device memory.
        dtype: Type of the operands of its convolutions and matrix products, or "".
        times: How often one call of the program runs it.
    """

    name: str
    opcode: str
    flops: float
    bytes: int
    dtype: str
    times: int


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "collective-permute" or "all-to-all".
        bytes: Size of the larger of input and output, on one device.
        groups: The devices that exchange with each other, as XLA writes them.
        times: How often one call of the program runs it.
    """

    kind: str
    bytes: int
    groups: str
    times: int


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a compiled program does on one device.

    Attributes:
        kernels: The kernels in the order of execution.
        collectives: The exchanges between devices.
        host_transfers: Number of transfers between device and host within the program.
    """

    kernels: tuple[Kernel, ...]
    collectives: tuple[Collective, ...]
    host_transfers: int

    @property
    def flops(self) -> float:
        """FLOP of all convolutions and matrix products."""
        return sum((kernel.flops * kernel.times for kernel in self.kernels), 0.0)

    @property
    def bytes(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.bytes * kernel.times for kernel in self.kernels)


def read_program(text: str) -> Contents:
    """Reads a program, given as the text of its HLO after compilation."""
    computations, entry = _parse(text)
    kernels, collectives, transfers = [], [], 0
    for computation, instruction, times in _executed(computations, entry, 1):
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            read = _sent(computation, instruction)
            written = sum(instruction.sizes) if instruction.opcode == kind else max(instruction.sizes, default=0)
            groups = re.search(
                r"(?:replica_groups|source_target_pairs)=(.+?)(?:, (?!device_ids)[a-z_]+=|$)", instruction.attributes
            )
            collectives.append(Collective(kind, max(read, written), groups[1] if groups else "", times))
        elif kind in HOST_TRANSFERS and "Megascale" in instruction.attributes:  # a network between TPU slices
            if kind == "send":
                collectives.append(Collective("all-reduce", _sent(computation, instruction), "", times))
        elif kind in HOST_TRANSFERS or (kind == "custom-call" and "callback" in instruction.attributes):
            transfers += times
        else:
            kernels.append(_kernel(computations, computation, instruction, times))
    return Contents(tuple(kernels), tuple(collectives), transfers)


def _sent(computation: dict[str, Instruction], instruction: Instruction) -> int:
    """Returns the bytes of the operands, wherever they are."""
    return sum(sum(computation[name].sizes) for name in instruction.operands if name in computation)


def _parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Returns the instructions of each computation by name, and the name of the first to run."""
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].removeprefix("%")
            if line.startswith("ENTRY"):
                entry = name
            current = computations[name] = {}
        elif match := _INSTRUCTION.match(line):
            name, rest = match.groups()
            result, rest = _split_type(rest)
            opcode, _, rest = rest.partition("(")
            inside, attributes = _closing(rest)
            shapes = tuple(
                (kind, tuple(int(n) for n in sizes.split(",") if n), ON_CHIP in layout)
                for kind, sizes, layout in _SHAPE.findall(result)
            )
            operands, value = tuple(_OPERANDS.findall(inside)), inside if opcode.strip() == "constant" else ""
            current[name] = Instruction(name, opcode.strip(), shapes, operands, attributes, value)
    return computations, entry


def _split_type(text: str) -> tuple[str, str]:
    if text.startswith("("):
        inside, rest = _closing(text[1:])
        return inside, rest.lstrip()
    result, _, rest = text.partition(" ")
    return result, rest


def _closing(text: str) -> tuple[str, str]:
    """Splits at the parenthesis that closes an opened one."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.start()], text[match.end() :]
    return text, ""


def _executed(
    computations: dict[str, dict[str, Instruction]], name: str, times: int
) -> Iterator[tuple[dict[str, Instruction], Instruction, int]]:
    """Yields what runs, with the computation it is part of, and how often."""
    for instruction in computations[name].values():
        opcode = instruction.opcode
        if opcode in NO_KERNEL or opcode.endswith(("-done", "-update")):  # the end of what has started before
            continue
        if opcode in ("while", "call", "conditional", "async-start"):
            trips = _trip_count(computations, instruction)
            for called in _CALLED.findall(instruction.attributes):
                yield from _executed(computations, called, times * trips)
        else:
            yield computations[name], instruction, times


def _trip_count(computations: dict[str, dict[str, Instruction]], instruction: Instruction) -> int:
    """Returns how often a loop runs, or 1 for other instructions and if the program does not say.

    The compiler for TPUs does not write it down: there, it is the bound that the counter of
    `lax.scan`, which starts at zero, is compared with.
    """
    if trips := _TRIP_COUNT.search(instruction.attributes):
        return int(trips[1])
    condition = _CONDITION.search(instruction.attributes)
    if not condition:
        return 1
    inside = computations[condition[1]]
    *_, root = inside.values()
    called = _CALLED.search(root.attributes)
    *_, compared = computations[called[1]].values() if called else [root]
    if compared.opcode != "compare" or "direction=LT" not in compared.attributes:
        return 1
    bounds = (inside[name] for name in root.operands if inside[name].opcode == "constant")
    return next((int(bound.value) for bound in bounds if bound.shapes[0][0] in ("s32", "s64")), 1)


def _kernel(
    computations: dict[str, dict[str, Instruction]],
    computation: dict[str, Instruction],
    instruction: Instruction,
    times: int,
) -> Kernel:
    inside: dict[str, Instruction] = {}
    called = _CALLED.search(instruction.attributes)
    if instruction.opcode == "fusion" and called:
        inside = computations[called[1]]
    products = [(inside, i) for i in inside.values()] or [(computation, instruction)]
    flops = [(_flops(among, product), product, among) for among, product in products]
    dtype = next((_operand_type(among, product) for count, product, among in flops if count), "")
    return Kernel(
        instruction.name,
        instruction.opcode,
        sum((count for count, _, _ in flops), 0.0),
        _traffic(computation, instruction, inside),
        dtype,
        times,
    )


def _operand_type(among: dict[str, Instruction], product: Instruction) -> str:
    return next((among[name].shapes[0][0] for name in product.operands if name in among and among[name].shapes), "")


def _flops(among: dict[str, Instruction], product: Instruction) -> float:
    """Returns the FLOP of a convolution or matrix product, or 0."""
    if not product.shapes:
        return 0.0
    shapes = [among[name].shapes[0][1] for name in product.operands if name in among and among[name].shapes]
    if labels := _LABELS.search(product.attributes):
        lhs, rhs, out = shapes[0], shapes[1], product.shapes[0][1]
        if "BackwardInput" in product.attributes:  # the operands are dy and the kernel
            lhs, out = out, lhs
        elif "BackwardFilter" in product.attributes:  # the operands are x and dy
            rhs, out = out, rhs
        features = labels[2].index("o")
        return 2.0 * math.prod(out) * math.prod(rhs) / rhs[features]
    if contracted := _CONTRACTED.search(product.attributes):
        inner = (shapes[0][int(axis)] for axis in contracted[1].replace('"', "").split(",") if axis)
        return 2.0 * math.prod(product.shapes[0][1]) * math.prod(inner)
    return 0.0


def _traffic(computation: dict[str, Instruction], instruction: Instruction, inside: dict[str, Instruction]) -> int:
    """Returns the bytes that a kernel reads and writes. A slice reads only its part."""
    if instruction.opcode in ("copy-start", "slice-start"):
        return _copied(computation, instruction)
    read = 0
    positions = [name for name, i in inside.items() if i.opcode == "parameter"]
    for position, name in enumerate(instruction.operands):
        if name not in computation:
            continue
        size = computation[name].size
        if position < len(positions):
            users = [i for i in inside.values() if positions[position] in i.operands]
            if users and all(i.opcode in READS_A_PART and i.operands[0] == positions[position] for i in users):
                size = min(size, sum(i.size for i in users))
        elif instruction.opcode in READS_A_PART:
            size = min(size, instruction.size)
        read += size
    return read + instruction.size


def _copied(computation: dict[str, Instruction], instruction: Instruction) -> int:
    """Returns the bytes that an asynchronous copy moves in device memory.

    Its result lists target, source and a counter, in different orders.
    """
    arrays = [shape for shape in instruction.shapes if shape[1]]
    kind, sizes, target_on_chip = min(arrays, key=lambda shape: math.prod(shape[1]), default=("", (), True))
    moved = _bytes((kind, sizes, False))
    source_on_chip = all(computation[name].shapes[0][2] for name in instruction.operands if name in computation)
    return moved * ((not source_on_chip) + (not target_on_chip))


def _bytes(shape: tuple[str, tuple[int, ...], bool]) -> int:
    kind, sizes, on_chip = shape
    if on_chip:
        return 0
    width = BYTES.get(kind) or (1 if kind.startswith("f8") else int(re.sub(r"\D", "", kind) or 0) // 8)
    return math.prod(sizes) * width
