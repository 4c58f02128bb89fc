"""The search for an induction circuit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import write_report
from vdinterp.cli.group import main, plain
from vdinterp.cli.options import engine as engine_option, noise_levels, out_folder, random_seed, resumable
from vdinterp.cli.stimuli import Given, takes_clips


@main.command()
@click.argument("model")
@takes_clips(count=False)
@noise_levels(otherwise="0.2, 0.4, 0.6, 0.8, 0.95; with --checkpoints 0.95")
@click.option("--clips-per-lag", type=click.IntRange(min=2), default=16, show_default=True)
@click.option(
    "--repeats",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Further searches with other seeds, which say how often the verdict comes again.",
)
@click.option("--checkpoints", help="all, or steps like 500,2000: the search along training instead.")
@random_seed("clips and noise")
@engine_option
@out_folder("out/induction")
@resumable
def induction(
    model: str,
    given: Given,
    levels: tuple[float, ...],
    clips_per_lag: int,
    repeats: int,
    checkpoints: str | None,
    seed: int,
    engine: Any,
    out: Path,
    resume: bool,
) -> None:
    """Search MODEL for an induction circuit.

    The stimuli are made of frames of the model's own kind of clips, or of --video or --clips.
    """
    import vdinterp as vd
    from vdinterp.analysis.induction import LEVELS

    if not resume:
        shutil.rmtree(out / "records", ignore_errors=True)
    asked = {"seed": seed, "n_per_lag": clips_per_lag, "repeats": repeats, "engine": engine, "out": out / "records"}
    if checkpoints is not None:
        if len(levels) > 1:
            raise ValueError("--checkpoints searches at one noise level; give --level once")
        steps = _steps(checkpoints, vd.list_checkpoints(model))
        pipes = {step: vd.load(model, checkpoint=step) for step in steps}
        clips = given.pool(next(iter(pipes.values())))
        along = vd.induction_over_training(pipes, clips, noise_level=levels[0] if levels else LEVELS[-1], **asked)
        click.echo(plain(along.summary()))
        write_report(along, out)
        return
    pipe = vd.load(model)
    clips = given.pool(pipe)
    result = vd.find_induction(pipe, clips, noise_levels=levels or LEVELS, **asked)
    click.echo(plain(result.summary()))
    write_report(result, out)


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
