"""The search for an induction circuit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from vdinterp.cli.group import check_folder, main, plain
from vdinterp.cli.videos import pairs_for


@main.command()
@click.argument("model")
@click.option("--video", type=click.Path(path_type=Path), help="A video whose frames the stimuli are made of.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Every Nth frame of the file.")
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.")
@click.option("--clips-per-lag", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--checkpoints", help="all, or steps like 500,2000: the search along training instead.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of clips and noise.")
@click.option("--engine", type=click.Choice(["inline", "ray"]), default="inline", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/induction"), show_default=True)
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped search, or start over.")
def induction(
    model: str,
    video: Path | None,
    stride: int,
    levels: tuple[float, ...],
    clips_per_lag: int,
    checkpoints: str | None,
    seed: int,
    engine: Any,
    out: Path,
    resume: bool,
) -> None:
    """Search MODEL for an induction circuit, say whether there is one, and write a report."""
    import vdinterp as vd
    from vdinterp.analysis.induction import LEVELS

    check_folder(out)
    if not resume:
        shutil.rmtree(out / "records", ignore_errors=True)
    if checkpoints is not None:
        if len(levels) > 1:
            raise ValueError("--checkpoints searches at one noise level; give --level once")
        steps = _steps(checkpoints, vd.list_checkpoints(model))
        pipes = {step: vd.load(model, checkpoint=step) for step in steps}
        clips = None if video is None else pairs_for(next(iter(pipes.values())), video, stride)
        along = vd.induction_over_training(
            pipes, clips, seed=seed, level=levels[0] if levels else LEVELS[-1], n_per_lag=clips_per_lag, engine=engine,
            out=out / "records",
        )  # fmt: skip
        click.echo(plain(along.summary()))
        click.echo(f"\nReport: {vd.report.write(along, out)}")
        return
    pipe = vd.load(model)
    clips = None if video is None else pairs_for(pipe, video, stride)
    result = vd.find_induction(
        pipe, clips, seed=seed, levels=levels or LEVELS, n_per_lag=clips_per_lag, engine=engine, out=out / "records"
    )
    click.echo(plain(result.summary()))
    click.echo(f"\nReport: {vd.report.write(result, out)}")


def _steps(text: str, known: list[int]) -> list[int]:
    """Checkpoints by name: all, or some of the known steps."""
    if not known:
        raise ValueError("this model comes without checkpoints along training")
    if text == "all":
        return known
    parts = [part.strip() for part in text.split(",")]
    if wrong := [part for part in parts if not part.isdigit() or int(part) not in known]:
        raise ValueError(f"--checkpoints {', '.join(wrong)}: give all, or some of {', '.join(map(str, known))}")
    return [int(part) for part in parts]
