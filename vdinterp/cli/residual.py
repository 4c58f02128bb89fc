"""The residual stream: what the lens shows, and which components write the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vdinterp.cli.group import check_folder, main, plain

if TYPE_CHECKING:
    from vdinterp.analysis import NoisedClips
    from vdinterp.pipeline import VideoDiffusion

LEVELS = (0.3, 0.6, 0.9)


@main.command()
@click.argument("model")
@click.option(
    "--clips", type=click.IntRange(min=2), default=32, show_default=True, help="To judge on; as many to train on."
)
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.")
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True, help="Of training the tuned lens.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of clips, noise and training.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/lens"), show_default=True)
def lens(model: str, clips: int, levels: tuple[float, ...], steps: int, seed: int, out: Path) -> None:
    """What the stream of MODEL holds, layer by layer, as pictures and as distance to the prediction."""
    import vdinterp as vd
    from vdinterp.analysis.lens_curve import lens_curve

    check_folder(out)
    pipe = vd.load(model)
    judged, reference = (_noised(pipe, clips, levels, seed, part) for part in ("evaluation", "reference"))
    tuned = vd.tuned_lens(reference, steps=steps, seed=seed)
    curve = lens_curve(judged, tuned)
    results: list[Any] = [curve]
    for level in judged.levels:
        cache = judged.cache(level, None, slice(0, 1))
        results.append(vd.lens(pipe, cache, frames=judged.target, tuned=tuned))
    click.echo(plain(curve.summary()))
    click.echo(f"\nReport: {vd.report.write(results, out, title=f'Lens of {Path(model).name}')}")


@main.command()
@click.argument("model")
@click.option("--clips", type=click.IntRange(min=1), default=32, show_default=True, help="How many clips.")
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of clips and noise.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/attribute"), show_default=True)
def attribute(model: str, clips: int, levels: tuple[float, ...], seed: int, out: Path) -> None:
    """Which components of MODEL write the prediction, and how that compares with leaving heads out."""
    import vdinterp as vd
    from vdinterp.analysis.direct_effect import direct_effect

    check_folder(out)
    pipe = vd.load(model)
    noised = _noised(pipe, clips, levels, seed, "evaluation")
    effect = direct_effect(noised)
    results: list[Any] = [effect]
    for level in noised.levels:
        results.append(vd.direct_attribution(pipe, noised.cache(level, None, noised.batches[0]), frames=noised.target))
    click.echo(plain(effect.summary()))
    click.echo(f"\nReport: {vd.report.write(results, out, title=f'Attribution of {Path(model).name}')}")


def _noised(pipe: VideoDiffusion, n: int, levels: tuple[float, ...], seed: int, part: Any) -> NoisedClips:
    import vdinterp as vd

    clips = vd.studies.held_out_clips(pipe, n, seed, part=part)
    return vd.NoisedClips(pipe, clips, levels=levels or LEVELS, seed=seed)
