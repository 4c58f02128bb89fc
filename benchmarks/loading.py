"""Memory that loading takes: peak resident memory above what the imports hold, as a share of the file.

    python benchmarks/loading.py                  # 340 M random weights, as float32 and as bfloat16
    python benchmarks/loading.py --layers 74      # 1.4 B; with a forward pass of 192 tokens

Every row is a process of its own; this one imports nothing large, since a child's peak begins with its parent's.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTH = 1024


def settings(layers: int) -> dict:
    """Of a Diffusion Forcing Transformer: 18.9 M weights a layer; a clip of 3 frames is 192 tokens."""
    backbone = {"hidden_size": WIDTH, "depth": layers, "num_heads": 16, "patch_size": 2, "mlp_ratio": 4.0}
    return {"backbone": backbone, "x_shape": [4, 16, 16], "max_tokens": 3}


def make(path: Path, dtype: str, layers: int) -> None:
    """A checkpoint of random weights, or a model folder."""
    import torch
    from safetensors.torch import save_file

    import vdinterp as vd
    from vdinterp.models import HookedVideoDiT
    from vdinterp.models.loading import convert_config, dfot

    cfg = convert_config("dfot", settings(layers))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in HookedVideoDiT(cfg).state_dict().items()}
    kind, weights = getattr(torch, dtype), {}
    for target, sources in dfot.key_table(cfg, {}).items():  # type: ignore[arg-type]
        rows = shapes[target][0] // len(sources)
        for source in sources:
            weights[source] = torch.randn(rows, *shapes[target][1:], dtype=kind) * 0.02
    if path.suffix == ".folder":
        model = HookedVideoDiT.from_state_dict("dfot", settings(layers), weights).to(kind)
        vd.pipeline.save_bundle(path, vd.VideoDiffusion(model, None, vd.DiffusionConfig()))
        return
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save({"state_dict": weights}, path)


def measure(path: Path, dtype: str, layers: int) -> None:
    """Load, run once, print the shares of the file that memory took at most by then."""
    import inspect

    import torch

    import vdinterp as vd
    import vdinterp.models.hooked_video_dit
    import vdinterp.pipeline.loading

    file = path / "model.safetensors" if path.is_dir() else path
    size, before = file.stat().st_size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    given = {"family": "dfot", "config": settings(layers)} if path.is_file() else {}
    if "dtype" in inspect.signature(vd.load).parameters and path.is_file():
        given["dtype"] = getattr(torch, dtype)
    pipe = vd.load(path, **given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    with torch.no_grad():
        noisy = torch.randn(1, 3, 4, 16, 16).to(pipe.dtype)
        pred = pipe.model(noisy, torch.full((1, 3), 500))
    assert bool(pred.isfinite().all())
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    n = sum(parameter.numel() for parameter in pipe.model.parameters())
    print(
        f"{path.name:24}{dtype:>10}{n / 1e6:8.0f} M{size / 2**20:8.0f} MiB   loaded: {peak / size:.2f} x file   "
        f"with a forward pass: {whole / size:.2f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--formats", nargs="+", default=["safetensors", "pt", "folder"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--dir", type=Path, help="where the files go; default: a folder that is removed")
    parser.add_argument("--step", choices=["make", "measure"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        step = make if asked.step == "make" else measure
        step(asked.dir, asked.dtypes[0], asked.layers)
        return
    with tempfile.TemporaryDirectory() as folder:
        for form in asked.formats:
            for dtype in asked.dtypes:
                path = (asked.dir or Path(folder)) / f"{dtype}.{form}"
                given = ["--dir", path, "--dtypes", dtype, "--layers", str(asked.layers)]
                for step in ("make", "measure"):
                    subprocess.run([sys.executable, __file__, "--step", step, *given], check=True)
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
