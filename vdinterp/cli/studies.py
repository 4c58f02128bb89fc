"""Bundled studies: ablations, and what every head does."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from vdinterp.cli.group import check_folder, echo_table, main, plain
from vdinterp.cli.videos import clips_for


@main.command()
@click.argument("name")
@click.option("--model", "model_names", multiple=True, required=True, help="A bundled model; may be given again.")
@click.option("--video", type=click.Path(path_type=Path), help="An mp4, webm or gif file instead of bundled clips.")
@click.option("--stride", type=click.IntRange(min=1), default=1, show_default=True, help="Every Nth frame of the file.")
@click.option("--clips", type=click.IntRange(min=1), help="How many clips at most; each study has its own default.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder to write.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over.")
def study(
    name: str, model_names: tuple[str, ...], video: Path | None, stride: int, clips: int | None, out: Path, resume: bool
) -> None:
    """Run the study NAME (for example: ablations) on one model or several, and write one report."""
    import vdinterp as vd

    check_folder(out)
    short = [Path(model_name).name for model_name in dict.fromkeys(model_names)]
    if len(set(short)) < len(short):
        raise ValueError(f"--model: two folders are called {max(short, key=short.count)!r}; rename one of them")
    pipes = {name: vd.load(path) for name, path in zip(short, dict.fromkeys(model_names), strict=True)}
    stimuli = {key: None if video is None else clips_for(pipe, video, clips, stride) for key, pipe in pipes.items()}
    results = []
    for model_name, pipe in pipes.items():
        click.echo(f"{name} on {model_name}", err=True)
        folder = out if len(pipes) == 1 else out / model_name
        results.append(vd.studies.run(name, pipe, clips=stimuli[model_name], n_clips=clips, out=folder, resume=resume))
    title = f"{name.capitalize()} of {' and '.join(pipes)}"
    path = vd.report.write(results if len(results) > 1 else results[0], out, title=title)
    for result in results:
        click.echo(f"\n{result.title}\n")
        lines = plain(result.summary()).splitlines()
        click.echo(
            "\n".join(textwrap.fill(line, 100, subsequent_indent="  " * line.startswith("- ")) for line in lines)
        )
    click.echo(f"\nReport: {path}")


@main.command()
@click.argument("model")
@click.option("--clips", type=click.IntRange(min=1), help="How many clips at most.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/heads"), show_default=True)
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over.")
def heads(model: str, clips: int | None, out: Path, resume: bool) -> None:
    """What every head of MODEL attends to, against chance, and what is lost without it; and a report on it."""
    import vdinterp as vd

    check_folder(out)
    result: Any = vd.studies.run("heads", vd.load(model), n_clips=clips, out=out, resume=resume)
    table = result.to_frame()
    level = table["level"].max()
    shown = table[table["level"] == level].sort_values("effect", ascending=False)
    click.echo(f"Noise level {level:g}; effect: rise of the x0 error when the head is at its mean, 95 % interval\n")
    numbers = {name: shown[name].map("{:.3f}".format) for name in ("score", "chance", "effect", "low", "high")}
    echo_table(shown[["layer", "head", "role"]].assign(**numbers))
    if "scroll" in result.parts:
        click.echo(f"\n{plain(result.parts['scroll'].summary())}")
    click.echo(f"\nReport: {vd.report.write(result, out)}")
