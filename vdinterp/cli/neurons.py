"""MLP neurons: what they fire for, what they write, what is lost without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import write_report
from vdinterp.cli.group import main, plain
from vdinterp.cli.options import noise_levels, out_folder, random_seed
from vdinterp.cli.stimuli import Given, takes_clips

PICKED = 2  # most selective neurons of a label whose effect is measured
FEW = 16  # clips on which it is


@main.command()
@click.argument("model")
@takes_clips(96)
@noise_levels((0.3, 0.9))
@click.option("--effects/--no-effects", default=True, show_default=True, help="Also leave the most selective ones out.")
@random_seed("clips and noise")
@out_folder("out/neurons")
def neurons(model: str, given: Given, levels: tuple[float, ...], effects: bool, seed: int, out: Path) -> None:
    """What every MLP neuron of MODEL fires for; and a page of them."""
    import vdinterp as vd

    pipe = vd.load(model)
    held_out = given.held_out(pipe, seed)
    noised = vd.NoisedClips(pipe, held_out, noise_levels=levels, seed=seed)
    labels, names = _labels(noised)
    result = vd.neurons.top_patches(noised, labels=labels, label_names=names)
    if effects:
        few = vd.NoisedClips(pipe, held_out[:FEW], noise_levels=noised.levels[-1:], seed=seed)
        chosen = [
            (int(layer), int(neuron))
            for name in (names or [None])[:6]
            for layer, neuron in result.most_selective(PICKED, name)
        ]
        about = {} if labels is None else {"labels": labels[: len(few.clips)], "label_names": names}
        found = vd.neurons.ablation_effects(few, list(dict.fromkeys(chosen)), seed=seed, **about)
        result = result.with_effects(found)
    page = out / "neurons.html"
    out.mkdir(parents=True, exist_ok=True)
    result.to_html(page)
    click.echo(plain(result.summary()))
    write_report(result, out)
    click.echo(f"All neurons: {page}")


def _labels(noised: Any) -> tuple[Any, Any]:
    """A label a token, where the clips' own ground truth has one."""
    labels = noised.clips.labels
    if "semantic_map" in labels:
        from vdinterp.data.crafter import SEMANTIC

        return noised.labels("semantic_map"), list(SEMANTIC)
    for name, values in labels.items():
        if values.ndim == 4 and not values.is_floating_point() and int(values.min()) >= 0:
            return noised.labels(name).long(), [str(index) for index in range(int(values.max()) + 1)]
    return None, None
