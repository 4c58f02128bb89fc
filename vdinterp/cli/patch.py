"""Patching, one place at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import write_report
from vdinterp.cli.group import main, plain
from vdinterp.cli.options import engine as engine_option, noise_levels, out_folder, random_seed, resumable
from vdinterp.cli.stimuli import Given, takes_clips


@main.command()
@click.argument("model")
@click.option("--site", default="z", show_default=True, help="What is patched: a hook name or alias.")
@click.option("--over", default="layer,head", show_default=True, help="Axes: layer,head,frame,token,level,step.")
@takes_clips(16, what="How many pairs of clean and corrupted clips.", spelt=("-n", "--n-clips", "--pairs"))
@noise_levels(otherwise="0.9")
@click.option("--steps", type=click.IntRange(min=1), help="Whole trajectories of so many steps instead of one level.")
@click.option("--metric", default="recovered", show_default=True, help="recovered, error or psnr.")
@click.option("--direction", type=click.Choice(["denoising", "noising"]), default="denoising", show_default=True)
@random_seed("pairs and noise")
@out_folder("out/patch")
@engine_option
@click.option("--workers", type=click.IntRange(min=1), help="Ray actors; default: one a GPU, or a CPU.")
@click.option("--address", help="A Ray cluster to use.")
@click.option("--shard", help="i/n: only the i-th of n parts, for array jobs that share --out.")
@resumable
def patch(
    model: str,
    site: str,
    over: str,
    given: Given,
    levels: tuple[float, ...],
    steps: int | None,
    metric: str,
    direction: Any,
    seed: int,
    out: Path,
    engine: Any,
    workers: int | None,
    address: str | None,
    shard: str | None,
    resume: bool,
) -> None:
    """Patch clean activations into corrupted runs, place by place.

    Pairs come from the model's own kind of clips; of --video or --clips the corrupted run is the stored twin, else the
    same frames under the next clip's actions, else the next clip.
    """
    import vdinterp as vd

    if steps is not None and levels:
        raise ValueError("--level is for single passes, --steps for trajectories; give one of them")
    part = _shard(shard)
    pipe = vd.load(model)
    clean, corrupted = given.pairs(pipe, seed)
    options = {"out": out, "shard": part, "resume": resume, "workers": workers, "address": address}
    result = vd.activation_patch(
        pipe,
        clean,
        corrupted,
        None if steps is not None else levels or (0.9,),
        steps=steps,
        site=site,
        over=tuple(name.strip() for name in over.split(",")),
        metric=metric,
        direction=direction,
        seed=seed,
        engine=engine,
        sweep_options=options,
    )
    if result.missing:
        click.echo(f"{result.missing} trials are left for other shards; run again without --shard for the report")
        return
    click.echo(plain(result.summary()))
    write_report(result, out)


def _shard(text: str | None) -> tuple[int, int]:
    """`2/4` as (2, 4); None is the whole."""
    if text is None:
        return 1, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ValueError(f"--shard {text!r}: give i/n with 1 <= i <= n, for example 1/4")
    return int(parts[0]), int(parts[1])
