"""The residual stream: what the lens shows, and which components write the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import write_report
from vdinterp.cli.group import main, plain
from vdinterp.cli.options import noise_levels, out_folder, random_seed
from vdinterp.cli.stimuli import Given, takes_clips

LEVELS = (0.3, 0.6, 0.9)


@main.command()
@click.argument("model")
@takes_clips(32, least=2, what="How many clips to judge on; as many to train on.")
@noise_levels(LEVELS)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Of training the tuned lens.")
@random_seed("clips, noise and training")
@out_folder("out/lens")
def lens(model: str, given: Given, levels: tuple[float, ...], steps: int, seed: int, out: Path) -> None:
    """What the stream of MODEL holds, layer by layer."""
    import vdinterp as vd
    from vdinterp.analysis.stream._lens_curve import lens_curve

    pipe = vd.load(model)
    judged, reference = (
        vd.NoisedClips(pipe, clips, noise_levels=levels, seed=seed) for clips in given.halves(pipe, seed)
    )
    tuned = vd.tuned_lens(reference, steps=steps, seed=seed)
    curve = lens_curve(judged, tuned)
    results: list[Any] = [curve]
    for level in judged.levels:
        cache = judged.cache(level, None, slice(0, 1))
        results.append(vd.lens(pipe, cache, frames=judged.target, tuned=tuned))
    click.echo(plain(curve.summary()))
    write_report(results, out, title=f"Lens of {Path(model).name}")


@main.command()
@click.argument("model")
@takes_clips(32)
@noise_levels(LEVELS)
@random_seed("clips and noise")
@out_folder("out/attribute")
def attribute(model: str, given: Given, levels: tuple[float, ...], seed: int, out: Path) -> None:
    """Which components of MODEL write the prediction."""
    import vdinterp as vd
    from vdinterp.analysis.stream._direct_effect import direct_effect

    pipe = vd.load(model)
    noised = vd.NoisedClips(pipe, given.held_out(pipe, seed), noise_levels=levels, seed=seed)
    effect = direct_effect(noised)
    results: list[Any] = [effect]
    for level in noised.levels:
        results.append(vd.direct_attribution(pipe, noised.cache(level, None, noised.batches[0]), frames=noised.target))
    click.echo(plain(effect.summary()))
    write_report(results, out, title=f"Attribution of {Path(model).name}")
