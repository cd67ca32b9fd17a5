"""Kernels, FLOP, bytes and collectives, read from the text of programs that XLA compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from diffae_jax.plan.hlo import read_program
from diffae_jax.plan.roofline import group_of_first

NHWC = ("NHWC", "HWIO", "NHWC")


def contents(function, *shapes, **settings):
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return read_program(jax.jit(function, **settings).lower(*abstract).compile().as_text())


def convolve(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)


def test_flops_of_products_and_of_a_convolution_and_both_its_gradients():
    assert contents(lambda a, b: a @ b, (40, 70), (70, 30)).flops == 2 * 40 * 70 * 30
    batched = contents(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (5, 8, 9), (5, 9, 7))
    assert batched.flops == 2 * 5 * 8 * 9 * 7
    one = 2 * 4 * 16 * 16 * 9 * 64 * 32
    shapes = (4, 16, 16, 64), (3, 3, 64, 32)
    assert contents(convolve, *shapes).flops == one

    def with_gradients(x, w):
        return jax.vjp(convolve, x, w)[1](jnp.cos(convolve(x, w)))

    assert contents(with_gradients, *shapes).flops == 3 * one


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def loop(x, w):
        return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=13)[0]

    read = contents(loop, (32, 64), (64, 64))
    assert read.flops == 13 * 2 * 32 * 64 * 64
    assert {kernel.times for kernel in read.kernels if kernel.flops} == {13}


def test_the_body_of_a_loop_counts_as_often_where_the_compiler_does_not_say_it():
    """As that for TPUs, which leaves the bound in the condition."""

    def loops(x, w):
        def inner(x, _):
            return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0], None

        return lax.scan(inner, x, None, length=13, reverse=True)[0]

    abstract = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 64), (64, 64)))
    text = jax.jit(loops).lower(*abstract).compile().as_text()
    assert text.count("known_trip_count") == 2
    read = read_program(text.replace("known_trip_count", "unknown"))
    assert read.flops == 7 * 13 * 2 * 32 * 64 * 64
    assert {kernel.times for kernel in read.kernels if kernel.flops} == {7 * 13}


def test_the_body_of_a_loop_without_a_number_of_steps_counts_once():
    def until_large(x, w):
        return lax.while_loop(lambda state: state[0] < 2.5, lambda state: (state[1].sum(), state[1] @ w), (0.0, x))

    assert contents(until_large, (32, 64), (64, 64)).flops == 2 * 32 * 64 * 64


def test_bytes_are_those_of_the_arrays_and_a_slice_reads_its_part():
    n = 2**16
    assert contents(lambda a, b: jnp.sin(a) + b, (n,), (n,)).bytes == 3 * 4 * n
    part = contents(lambda a: jnp.sin(lax.dynamic_slice(a, (5,), (n // 64,))), (n,))
    assert part.bytes < 4 * n / 4


@pytest.mark.parametrize("kind", ["all-reduce", "all-gather"])
def test_collectives_and_their_bytes(eight_devices, kind):
    split, whole = (NamedSharding(eight_devices, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
    x = jax.ShapeDtypeStruct((64, 1000), jnp.float32, sharding=split)
    function = (lambda x: x.sum(0)) if kind == "all-reduce" else (lambda x: x)
    text = jax.jit(function, out_shardings=whole).lower(x).compile().as_text()
    (collective,) = read_program(text).collectives
    assert collective.kind == kind
    assert collective.bytes == 4 * 1000 * (1 if kind == "all-reduce" else 64)
    assert sorted(group_of_first(collective.groups, 8)) == list(range(8))


def test_transfers_to_the_host_are_counted():
    def function(x):
        jax.debug.callback(lambda value: None, x.sum())
        return jnp.sin(x)

    quiet = contents(jnp.sin, (8,))
    assert quiet.host_transfers == 0
    assert contents(function, (8,)).host_transfers > 0


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", [0, 1, 2, 3]),
        ("{{4,5},{0,2}}", [0, 2]),
        ("[2,4]<=[8]", [0, 1, 2, 3]),
        ("[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("mesh['slice'=2,'data'=4] {'data'}", [0, 1, 2, 3]),
        ("mesh['slice'=2,'data'=4] {'slice'}", [0, 4]),
        ("mesh['slice'=2,'data'=4] {'slice','data'}", list(range(8))),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", [0, 1, 2, 3]),
        ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", [0, 4]),
        ("", list(range(8))),
    ],
)
def test_groups_are_read_in_all_forms(groups, members):
    assert list(group_of_first(groups, 8)) == members


# A few lines as the compilers of GPUs and TPUs write them, with what these kernels do.

CUDNN = """\
HloModule gpu

ENTRY %main (x: bf16[128,64,64,32], w: bf16[48,3,3,32]) -> bf16[128,64,64,48] {
  %x = bf16[128,64,64,32]{3,2,1,0} parameter(0)
  %w = bf16[48,3,3,32]{3,2,1,0} parameter(1)
  %conv = (bf16[128,64,64,48]{3,2,1,0}, u8[1000]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  ROOT %y = bf16[128,64,64,48]{3,2,1,0} get-tuple-element(%conv), index=0
}
"""

CUBLAS = """\
HloModule gpu

ENTRY %main (a: f16[256,96], b: f16[96,64]) -> f16[256,64] {
  %a = f16[256,96]{1,0} parameter(0)
  %b = f16[96,64]{1,0} parameter(1)
  %product = (f16[256,64]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"alpha_real":1,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  ROOT %y = f16[256,64]{1,0} get-tuple-element(%product), index=0
}
"""

TPU = """\
HloModule tpu

%inside (p.0: f32[256,128], p.1: f32[128,64]) -> f32[256,64] {
  %p.0 = f32[256,128]{1,0:T(8,128)S(1)} parameter(0)
  %p.1 = f32[128,64]{1,0:T(8,128)} parameter(1)
  ROOT %dot = f32[256,64]{1,0:T(8,128)} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: f32[256,128], b: f32[128,64]) -> f32[256,64] {
  %a = f32[256,128]{1,0:T(8,128)} parameter(0)
  %b = f32[128,64]{1,0:T(8,128)} parameter(1)
  %copy-start = (f32[256,128]{1,0:T(8,128)S(1)}, f32[256,128]{1,0:T(8,128)}, u32[]) copy-start(%a)
  %copy-done = f32[256,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  ROOT %fusion = f32[256,64]{1,0:T(8,128)} fusion(%copy-done, %b), kind=kOutput, calls=%inside
}
"""

SUMMED = """\
HloModule tpu

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

ENTRY %main (a: f32[256,128], b: f32[64]) -> (f32[256,128], f32[64]) {
  %a = f32[256,128]{1,0:T(8,128)S(1)} parameter(0)
  %b = f32[64]{0:T(128)} parameter(1)
  ROOT %all = (f32[256,128]{1,0:T(8,128)S(1)}, f32[64]{0:T(128)}) all-reduce(%a, %b), replica_groups={{0,1}}, \
to_apply=%add
}
"""


def test_devices_exchange_what_is_in_their_fast_memory_too():
    (collective,) = read_program(SUMMED).collectives
    assert collective.bytes == 4 * (256 * 128 + 64)


def test_kernel_of_cudnn():
    (kernel,) = read_program(CUDNN).kernels
    assert kernel.flops == 2 * 128 * 64 * 64 * 48 * 9 * 32
    assert kernel.dtype == "bf16"
    assert kernel.bytes == 2 * 128 * 64 * 64 * (32 + 48) + 2 * 48 * 9 * 32 + 1000


def test_product_of_cublas():
    (kernel,) = read_program(CUBLAS).kernels
    assert kernel.flops == 2 * 256 * 96 * 64
    assert kernel.dtype == "f16"


def test_arrays_in_the_fast_memory_of_a_tpu_cost_no_traffic_and_an_asynchronous_copy_reads_once():
    read = read_program(TPU)
    copy, fusion = read.kernels
    assert copy.bytes == 4 * 256 * 128
    assert fusion.bytes == 4 * (128 * 64 + 256 * 64)
    assert fusion.flops == 2 * 256 * 128 * 64
    assert np.isclose(read.flops, fusion.flops)
