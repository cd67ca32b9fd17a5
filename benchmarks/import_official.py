"""Measures time and peak memory of importing a checkpoint of the size of the official ffhq256.

The checkpoint is written with random weights.

    python -m benchmarks.import_official
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.official import official_checkpoint, official_state
from tests.torch_writer import write_checkpoint

FFHQ256 = dict(
    base=128,
    mults=(1, 1, 2, 2, 4, 4),
    encoder_mults=(1, 1, 2, 2, 4, 4, 4),
    size=256,
    attention=(16,),
    embed=512,
    z=512,
    latent=None,
)


def peak_memory() -> int:
    """Returns the peak memory of this process in bytes. ru_maxrss would include the parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def import_in_this_process(path: str) -> None:
    """Prints the duration of the import, and how much memory it adds to that of JAX."""
    import jax

    from diffae_jax.convert import import_official

    jax.devices()
    before = peak_memory()
    start = time.perf_counter()
    model = import_official(path)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - start
    peak = peak_memory()
    size = Path(path).stat().st_size
    print(
        f"{size / 2**20:.0f} MiB imported in {seconds:.1f} s; peak memory of the process {peak / 2**20:.0f} MiB "
        f"({peak / size:.2f} x the file), {(peak - before) / 2**20:.0f} MiB above its start"
    )


def main() -> None:
    """Writes the checkpoint, and imports it in a separate process."""
    state = official_state(**FFHQ256)
    for kind, averaged_only in (("averaged weights only", True), ("weights before and after averaging", False)):
        tree = official_checkpoint(state, z=None, size=256)
        if averaged_only:
            tensors = tree["state_dict"]
            tree["state_dict"] = {name: array for name, array in tensors.items() if not name.startswith("model.")}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "last.ckpt"
            write_checkpoint(path, tree)
            del tree
            print(f"{kind}: ", end="", flush=True)
            subprocess.run([sys.executable, "-m", "benchmarks.import_official", str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        import_in_this_process(sys.argv[1])
    else:
        main()
