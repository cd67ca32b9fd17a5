"""Compiles one program of a config for a target, in a process of its own.

    python -m diffae_jax.plan.compiling < REQUEST > RESULT

Compilers of absent machines are configured by the environment, print what they like and may crash,
and libtpu takes a lock: none of this may happen in the process of the user.
"""

import dataclasses
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # jax must not be imported before the environment is set
    import jax
    from jax.sharding import Mesh
    from ml_collections import ConfigDict

PROGRAMS = ("train", "prior", "encode", "invert", "decode", "sample")
NUM_LATENTS = 10_000  # that the prior trains on; their number hardly matters

# Autotuning would run kernels; without it, kernels of Triton have no settings for some shapes.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def environment(target: str | None) -> dict[str, str]:
    """Returns the environment variables for compiling for a target, or for this machine."""
    if target is None:
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS}".strip(),
    }


def target_mesh(name: str | None) -> "Mesh":
    """Returns a mesh of the devices of a target, which need not exist, or of this machine."""
    from diffae_jax.runtime.sharding import make_mesh

    if name is None:
        return make_mesh()
    from jax.experimental import topologies

    from diffae_jax.plan.targets import find_target, gpu_description

    target = find_target(name)
    if target.platform == "tpu":
        slices = {"num_slices": target.num_slices} if target.num_slices > 1 else {}
        # the two cores of a chip act as one device, as on a real machine
        cores = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **slices, **cores)
    else:
        description = gpu_description(target.chip)
        topology = topologies.get_topology_desc(
            target.name, "cuda", target_config=description, topology=target.topology
        )
    return make_mesh(topology.devices, target.num_slices)


def compile_program(
    config: "ConfigDict", mesh: "Mesh", program: str, batch: int | None = None
) -> "jax.stages.Compiled":
    """Compiles one of `PROGRAMS`, as a run would: see `analyze`."""
    from diffae_jax.inference import programs
    from diffae_jax.stages.autoencoder import autoencoder_program
    from diffae_jax.stages.prior import prior_program

    if program == "train":
        return autoencoder_program(config, mesh).step
    if program == "prior":
        return prior_program(config, mesh, NUM_LATENTS).step
    return getattr(programs, program).lower(**inference_arguments(config, mesh, program, batch)).compile()


def inference_batch(config: "ConfigDict", num_devices: int) -> int:
    """Returns the number of images in a full batch of a trained model."""
    import math

    from diffae_jax.inference.batching import images_at_once

    return images_at_once(math.prod(config.image_shape)) * num_devices


def inference_arguments(config: "ConfigDict", mesh: "Mesh", program: str, batch: int | None = None) -> dict[str, Any]:
    """Returns abstract arguments of one of the functions in `inference.programs`."""
    import jax
    import numpy as np

    from diffae_jax.diffusion.process import image_process, latent_process
    from diffae_jax.diffusion.samplers import DDIM, DDIM_INVERSION
    from diffae_jax.inference.weights import abstract_weights
    from diffae_jax.models import abstract_model
    from diffae_jax.models.build import builder, prior_builder
    from diffae_jax.runtime.sharding import replicated, split_batch

    batch, z_dim = batch or inference_batch(config, mesh.size), config.model.z_dim
    weights = abstract_weights(config, mesh)
    graphdef, _ = abstract_model(builder(config, config.train.precision))
    num_steps = config.evaluation.num_code_steps

    def array(*shape, dtype=np.float32, split=True):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split_batch(mesh) if split else replicated(mesh))

    images = array(batch, *config.image_shape)
    z = None if z_dim is None else array(batch, z_dim)
    settings = dict(graphdef=graphdef, process=image_process(config), num_steps=num_steps)
    if program == "encode":
        return dict(params=weights["autoencoder"], images=images, graphdef=graphdef)
    if program == "invert":
        return dict(params=weights["autoencoder"], images=images, z=z, sampler=DDIM_INVERSION, **settings)
    if program == "decode":
        return dict(params=weights["autoencoder"], x_T=images, z=z, sampler=DDIM, **settings)
    prior_graphdef, _ = abstract_model(prior_builder(config, config.train.precision))
    return dict(
        params=weights["autoencoder"],
        indices=array(batch, dtype=np.int32),
        prior=weights["prior"],
        statistics=(array(z_dim, split=False),) * 2,
        seed=array(dtype=np.uint32, split=False),
        graphdefs=(graphdef, prior_graphdef),
        shape=tuple(config.image_shape),
        processes=(image_process(config), latent_process(config)),
        num_steps=(num_steps, num_steps),
        samplers=(DDIM, DDIM),
    )


def analyze(
    config: "ConfigDict", mesh: "Mesh", program: str, batch: int | None = None
) -> tuple["jax.stages.Compiled", dict[str, Any]]:
    """Compiles a program, and reads what it needs.

    Args:
        config: The config, with a precision other than "auto" for inference.
        mesh: The devices: see `target_mesh`.
        program: One of `PROGRAMS`.
        batch: Images in a call, for a program of a trained model; by default a full batch. A
            multiple of the number of devices.

    Returns:
        (compiled program, figures for one device: kernels, collectives, bytes of memory, seconds
        to compile).
    """
    from diffae_jax.plan.hlo import read_program

    started = time.monotonic()
    compiled = compile_program(config, mesh, program, batch)
    seconds = time.monotonic() - started
    memory, contents = compiled.memory_analysis(), read_program(compiled.as_text())
    device = mesh.devices.flat[0]
    return compiled, dict(
        kernels=[dataclasses.astuple(kernel) for kernel in contents.kernels],
        collectives=[dataclasses.astuple(collective) for collective in contents.collectives],
        host_transfers=contents.host_transfers,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        num_devices=mesh.size,
        num_slices=mesh.devices.shape[0] if mesh.devices.ndim > 1 else 1,
        kind=device.device_kind,
        compile_seconds=seconds,
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of a request.

    Args:
        request: `config` (the path of a config.json), `target` (a name or None), `program` (one of
            `PROGRAMS`).
    """
    from pathlib import Path

    from diffae_jax.config import from_json
    from diffae_jax.runtime.cpu import use_all_cores

    config = from_json(Path(request["config"]))
    if request["target"] is None:
        use_all_cores(config)
    return analyze(config, target_mesh(request["target"]), request["program"])[1]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    os.environ.update(environment(asked["target"]))
    output, sys.stdout = sys.stdout, sys.stderr  # libraries and `say` may print
    from diffae_jax.runtime.errors import UserError

    try:
        json.dump(run(asked), output)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
