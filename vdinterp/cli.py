"""The `vdinterp` command. The only part of the library that prints; models and torch are imported when used."""

from __future__ import annotations

import logging
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

    from vdinterp.data import Clips
    from vdinterp.pipeline import VideoDiffusion

USER_ERRORS = (ValueError, KeyError, FileNotFoundError)
CLIPS_OF_A_FILE, PAIRS_OF_A_FILE = 8, 256


class _OneLine(click.ClickException):
    """A mistake in what was asked for: one line, no traceback, exit code 2 (as click's own usage errors)."""

    exit_code = 2


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            # str() of a KeyError is the repr of its message.
            message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            raise _OneLine(" ".join(message.split())) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vdinterp")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Mechanistic interpretability of video diffusion transformers."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("vdinterp").setLevel(logging.DEBUG if debug else logging.INFO)


@main.command()
def models() -> None:
    """List the trained models in the package and the families that can be converted."""
    from vdinterp.pipeline import list_families

    _echo_table(models_table())
    click.echo(f"\nConverters for published checkpoints: {', '.join(list_families())}")


@main.command()
@click.argument("model")
def hooks(model: str) -> None:
    """List the hook points of MODEL: name, shape, meaning."""
    import vdinterp as vd

    _echo_table(vd.load(model).model.describe_hooks())


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

    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder")
    short = [Path(model_name).name for model_name in dict.fromkeys(model_names)]
    if len(set(short)) < len(short):
        raise ValueError(f"--model: two folders are called {max(short, key=short.count)!r}; rename one of them")
    pipes = {name: vd.load(path) for name, path in zip(short, dict.fromkeys(model_names), strict=True)}
    stimuli = {key: None if video is None else _clips_for(pipe, video, clips, stride) for key, pipe in pipes.items()}
    results = []
    for model_name, pipe in pipes.items():
        click.echo(f"{name} on {model_name}", err=True)
        folder = out if len(pipes) == 1 else out / model_name
        results.append(vd.studies.run(name, pipe, clips=stimuli[model_name], n_clips=clips, out=folder, resume=resume))
    title = f"{name.capitalize()} of {' and '.join(pipes)}"
    path = vd.report.write(results if len(results) > 1 else results[0], out, title=title)
    for result in results:
        click.echo(f"\n{result.title}\n")
        lines = result.summary().replace("`", "").replace("**", "").splitlines()
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

    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder")
    result: Any = vd.studies.run("heads", vd.load(model), n_clips=clips, out=out, resume=resume)
    table = result.to_frame()
    level = table["level"].max()
    shown = table[table["level"] == level].sort_values("effect", ascending=False)
    click.echo(f"Noise level {level:g}; effect: rise of the x0 error when the head is at its mean, 95 % interval\n")
    numbers = {name: shown[name].map("{:.3f}".format) for name in ("score", "chance", "effect", "low", "high")}
    _echo_table(shown[["layer", "head", "role"]].assign(**numbers))
    if "scroll" in result.parts:
        click.echo(f"\n{result.parts['scroll'].summary().replace('**', '')}")
    click.echo(f"\nReport: {vd.report.write(result, out)}")


@main.command()
@click.argument("model")
@click.option("--site", default="z", show_default=True, help="What is patched: a hook name or alias.")
@click.option("--over", default="layer,head", show_default=True, help="Axes: layer,head,frame,token,level,step.")
@click.option("--pairs", type=click.IntRange(min=1), default=16, show_default=True, help="Clean and corrupted clips.")
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.  [0.9]")
@click.option("--steps", type=click.IntRange(min=1), help="Whole trajectories of so many steps instead of one level.")
@click.option("--metric", default="recovered", show_default=True, help="recovered, error or psnr.")
@click.option("--direction", type=click.Choice(["denoising", "noising"]), default="denoising", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of pairs and noise.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/patch"), show_default=True)
@click.option("--engine", type=click.Choice(["inline", "ray"]), default="inline", show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Ray actors; default: one a GPU, or a CPU.")
@click.option("--address", help="A Ray cluster to use.")
@click.option("--shard", help="i/n: only the i-th of n parts, for array jobs that share --out.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over.")
def patch(
    model: str,
    site: str,
    over: str,
    pairs: int,
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
    """Patch activations of clean clips into corrupted ones, one place at a time, and write a report."""
    import vdinterp as vd

    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder")
    if steps is not None and levels:
        raise ValueError("--level is for single passes, --steps for trajectories; give one of them")
    part = _shard(shard)
    pipe = vd.load(model)
    clean, corrupted = vd.studies.pairs_of(pipe, pairs, seed)
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
    click.echo(result.summary())
    click.echo(f"\nReport: {vd.report.write(result, out)}")


def _shard(text: str | None) -> tuple[int, int]:
    """`2/4` as (2, 4); None is the whole."""
    if text is None:
        return 1, 1
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
        raise ValueError(f"--shard {text!r}: give i/n with 1 <= i <= n, for example 1/4")
    return int(parts[0]), int(parts[1])


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

    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder")
    if not resume:
        shutil.rmtree(out / "records", ignore_errors=True)
    if checkpoints is not None:
        if len(levels) > 1:
            raise ValueError("--checkpoints searches at one noise level; give --level once")
        steps = _steps(checkpoints, vd.list_checkpoints(model))
        pipes = {step: vd.load(model, checkpoint=step) for step in steps}
        clips = None if video is None else _pairs_for(next(iter(pipes.values())), video, stride)
        along = vd.induction_over_training(
            pipes, clips, seed=seed, level=levels[0] if levels else LEVELS[-1], out=out / "records"
        )
        click.echo(along.summary().replace("**", ""))
        click.echo(f"\nReport: {vd.report.write(along, out)}")
        return
    pipe = vd.load(model)
    clips = None if video is None else _pairs_for(pipe, video, stride)
    result = vd.find_induction(
        pipe, clips, seed=seed, levels=levels or LEVELS, n_per_lag=clips_per_lag, engine=engine, out=out / "records"
    )
    click.echo(result.summary().replace("**", ""))
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


@main.command()
@click.argument("name")
@click.option("--steps", type=click.IntRange(min=1), help="A shorter run, every stage shortened alike.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model and saved state.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than that of the bundled weights.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over.")
def train(name: str, steps: int | None, out: Path, seed: int | None, resume: bool) -> None:
    """Train the bundled model NAME from nothing."""
    from vdinterp import training

    if out.is_file():
        raise ValueError(f"--out {out} is a file; give a folder")
    training.train(name, steps=steps, out=out, seed=seed, resume=resume)
    click.echo(f"Wrote {name} to {out}")


def _clips_for(pipe: VideoDiffusion, video: Path, n: int | None, stride: int) -> Clips:
    """Clips of a file in the size, colours and length that the model was made for."""
    found = _read(pipe, video, n or CLIPS_OF_A_FILE, pipe.model.cfg.n_frames, stride)
    if n is not None and len(found) < n:
        click.echo(f"{video} is long enough for {len(found)} of {n} clips", err=True)
    return found


def _pairs_for(pipe: VideoDiffusion, video: Path, stride: int) -> Clips:
    """Pairs of consecutive frames of a file, which the stimuli of a search are made of."""
    return _read(pipe, video, PAIRS_OF_A_FILE, 2, stride)


def _read(pipe: VideoDiffusion, video: Path, n: int, n_frames: int, stride: int) -> Clips:
    import torch

    from vdinterp.data import read_clips

    cfg = pipe.model.cfg
    frame = pipe.decode(torch.zeros(1, 1, cfg.in_channels, cfg.height, cfg.width))
    channels, height, width = frame.shape[2:]
    return read_clips(video, n, n_frames, (height, width), stride=stride, channels=channels)


def models_table() -> pd.DataFrame:
    """The bundled models, one row each: size, what a clip is, and the training steps that can be loaded."""
    import pandas as pd

    from vdinterp.pipeline import list_checkpoints, list_models, load

    rows = []
    for name in list_models():
        pipe = load(name)
        cfg = pipe.model.cfg
        frame = "x".join(map(str, (cfg.in_channels, cfg.height, cfg.width)))
        steps = list_checkpoints(name)
        rows.append(
            {
                "model": name,
                "parameters": f"{sum(weight.numel() for weight in pipe.model.parameters()) / 1e6:.2f} M",
                "layers x heads": f"{cfg.n_layers} x {cfg.n_heads}",
                "block": cfg.residual,
                "latents": f"{cfg.n_frames} frames of {frame}",
                "actions": cfg.d_action or "none",
                "checkpoints": f"{len(steps)}, steps {steps[0]} to {steps[-1]}" if steps else "none",
            }
        )
    return pd.DataFrame(rows)


def _echo_table(table: pd.DataFrame) -> None:
    """A table as aligned text, left-justified, every cell whole."""
    cells = [[str(column) for column in table.columns]]
    cells += [["" if value is None else str(value) for value in row] for row in table.itertuples(index=False)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    for row in (cells[0], rule, *cells[1:]):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
