"""The small model, clips and files that bad input is tried on; made once."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from contrasts import latents, small_pipe

import vdinterp as vd

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-"))


@functools.cache
def pipe(kind: str = "3d") -> Any:
    return small_pipe(kind)


@functools.cache
def clips() -> Any:
    generator = torch.Generator().manual_seed(0)
    return vd.data.Clips(
        kind="fuzz",
        video=torch.rand(4, 4, 1, 4, 6, generator=generator),
        action=torch.eye(3)[torch.randint(3, (4, 4), generator=generator)],
    )


@functools.cache
def noised() -> Any:
    return vd.NoisedClips(pipe(), clips(), noise_levels=(0.5, 0.9), batch=4)


@functools.cache
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    return latents(3)


@functools.cache
def k() -> torch.Tensor:
    return torch.tensor([[-1, -1, -1, 700]] * 3)


@functools.cache
def levels() -> torch.Tensor:
    return torch.tensor([[0, 0, 0, 0.701]] * 3)


def action() -> torch.Tensor:
    return torch.eye(3)[torch.zeros(3, 4, dtype=torch.long)]


@functools.cache
def cache() -> Any:
    with torch.no_grad():
        return pipe().model.run_with_cache(pair()[0], k(), action())[1]


@functools.cache
def bundle() -> Path:
    """A saved model."""
    folder = FOLDER / "bundle"
    vd.pipeline.save_bundle(folder, pipe())
    return folder


@functools.cache
def result() -> Any:

    table = pd.DataFrame({"head": ["0.0", "0.1"], "score": [0.5, 0.25], "said": ["a\nb", "c,d"]})
    return Kept(table=table, values=torch.arange(6.0).reshape(2, 3), meta={"model": "tiny", "seed": 3})


@functools.cache
def saved_result() -> Path:
    return result().save(FOLDER / "result")


@functools.cache
def film() -> Path:
    video = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return vd.data.write_video(FOLDER / "film.mp4", video)


def copy_of(path: Path, name: str) -> Path:
    """A fresh copy of a file or folder, to be spoilt."""
    target = FOLDER / "spoilt" / name
    shutil.rmtree(target, ignore_errors=True)
    target.unlink(missing_ok=True) if target.is_file() else None
    target.parent.mkdir(parents=True, exist_ok=True)
    _ = shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    return target


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def _kept() -> Any:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True, eq=False)
    class Kept(vd.Result):
        title = "Kept"
        table: pd.DataFrame
        values: torch.Tensor

    return Kept


Kept = _kept()
