"""MLP neurons: what they fire for, what they write, what is lost without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vdinterp.cli.group import check_folder, main, plain

LEVELS = (0.3, 0.9)
PICKED = 2  # most selective neurons of a label whose effect is measured


@main.command()
@click.argument("model")
@click.option("--clips", type=click.IntRange(min=1), default=96, show_default=True, help="How many clips.")
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.")
@click.option("--effects/--no-effects", default=True, show_default=True, help="Also leave the most selective ones out.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of clips and noise.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/neurons"), show_default=True)
def neurons(model: str, clips: int, levels: tuple[float, ...], effects: bool, seed: int, out: Path) -> None:
    """What every MLP neuron of MODEL fires for; a report, and a page to browse them all."""
    import vdinterp as vd

    check_folder(out)
    pipe = vd.load(model)
    held_out = vd.studies.held_out_clips(pipe, clips, seed)
    noised = vd.NoisedClips(pipe, held_out, levels=levels or LEVELS, seed=seed)
    labels, names = _labels(vd, held_out, noised)
    result = vd.neurons.top_patches(noised, labels=labels, label_names=names)
    if effects:
        few = vd.NoisedClips(pipe, held_out[: min(16, clips)], levels=noised.levels[-1:], seed=seed)
        chosen = [
            (int(layer), int(neuron))
            for name in (names or [None])[:6]
            for layer, neuron in result.most_selective(PICKED, name)
        ]
        given = {} if labels is None else {"labels": labels[: len(few.clips)], "label_names": names}
        found = vd.neurons.ablation_effects(few, list(dict.fromkeys(chosen)), seed=seed, **given)
        result = result.with_effects(found)
    page = out / "neurons.html"
    out.mkdir(parents=True, exist_ok=True)
    result.to_html(page)
    click.echo(plain(result.summary()))
    click.echo(f"\nReport: {vd.report.write(result, out)}\nAll neurons: {page}")


def _labels(vd: Any, clips: Any, noised: Any) -> tuple[Any, Any]:
    """A label a token, where the clips' own ground truth has one."""
    if clips.semantic_map is None:
        return None, None
    from vdinterp.data.crafter import SEMANTIC

    return clips.semantic_map[:, : noised.n_frames], list(SEMANTIC)
