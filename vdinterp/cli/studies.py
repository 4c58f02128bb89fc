"""Bundled studies: ablations, and what every head does."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import check_out, write_report
from vdinterp.cli.group import echo_table, main, plain
from vdinterp.cli.options import out_folder, resumable
from vdinterp.cli.stimuli import Given, takes_clips
from vdinterp.words.wording import caution


class StudyCommand(click.Command):
    """Help that lists the studies; they are imported only for it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from vdinterp.studies import NAMES

        with formatter.section("Studies"):
            formatter.write_dl(
                [(name, " ".join((study.__doc__ or "").split(".")[0].split()) + ".") for name, study in NAMES.items()]
            )


def _models_are_arguments(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> None:
    if value:
        raise click.UsageError(
            f"models are arguments: vdinterp study {ctx.params.get('name', 'NAME')} {' '.join(value)}"
        )


@main.command(cls=StudyCommand)
@click.argument("name", is_eager=True)
@click.argument("models", nargs=-1)
@click.option("--model", multiple=True, hidden=True, expose_value=False, callback=_models_are_arguments)
@takes_clips(what="How many clips at most; each study has its own default.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [default: out/NAME]")
@resumable
def study(name: str, models: tuple[str, ...], given: Given, out: Path | None, resume: bool) -> None:
    """Run the study NAME on one MODEL or several; one report."""
    import vdinterp as vd

    vd.studies.find(name)
    if not models:
        raise click.UsageError(f"Missing argument 'MODELS...': vdinterp study {name} tiny-crafter")
    check_out(out := out or Path("out") / name)
    short = [Path(model).name for model in dict.fromkeys(models)]
    if len(set(short)) < len(short):
        raise ValueError(f"two folders are called {max(short, key=short.count)!r}; rename one of them")
    pipes = {name: vd.load(path) for name, path in zip(short, dict.fromkeys(models), strict=True)}
    stimuli = {model: given.clips(pipe, given.n) for model, pipe in pipes.items()}
    results = []
    for model, pipe in pipes.items():
        click.echo(f"{name} on {model}", err=True)
        folder = out if len(pipes) == 1 else out / model
        results.append(vd.studies.run(name, pipe, clips=stimuli[model], n_clips=given.n, out=folder, resume=resume))
    for result in results:
        click.echo(f"\n{result.title}\n")
        lines = plain(result.summary()).splitlines()
        click.echo(
            "\n".join(textwrap.fill(line, 100, subsequent_indent="  " * line.startswith("- ")) for line in lines)
        )
    content = results if len(results) > 1 else results[0]
    write_report(content, out, title=f"{name.capitalize()} of {' and '.join(pipes)}")


@main.command()
@click.argument("model")
@takes_clips(what="How many clips at most.  [default: 32]")
@out_folder("out/heads")
@resumable
def heads(model: str, given: Given, out: Path, resume: bool) -> None:
    """What every head of MODEL attends to, and is needed for."""
    import vdinterp as vd

    pipe = vd.load(model)
    clips = given.clips(pipe, given.n)
    result: Any = vd.studies.run("heads", pipe, clips=clips, n_clips=given.n, out=out, resume=resume)
    table = result.to_frame()
    if said := caution(result.meta):
        click.echo(plain(said))
    level = table["level"].max()
    shown = table[table["level"] == level].sort_values("effect", ascending=False)
    click.echo(f"Noise level {level:g}; effect: rise of the x0 error when the head is at its mean, 95 % interval\n")
    numbers = {name: shown[name].map("{:.3f}".format) for name in ("score", "chance", "effect", "low", "high")}
    echo_table(shown[["layer", "head", "role"]].assign(**numbers))
    if "scroll" in result.parts:
        click.echo(f"\n{plain(result.parts['scroll'].summary())}")
    write_report(result, out)
