"""What can be read off the stream, and off the input alone."""

from __future__ import annotations

from pathlib import Path

import click

from vdinterp.cli.files import write_report
from vdinterp.cli.group import main, plain
from vdinterp.cli.options import noise_levels, out_folder, random_seed
from vdinterp.cli.stimuli import Given, takes_clips


@main.command()
@click.argument("model")
@click.option(
    "--label",
    help="What to read: material, action, moved; digit, lag; position, velocity, occluded; or a label of --clips.",
)
@takes_clips(96, least=10)
@noise_levels((0.3, 0.9))
@click.option("--site", default="resid_post", show_default=True, help="What is read: a hook name or alias.")
@random_seed("clips, noise and folds")
@out_folder("out/probe")
def probe(
    model: str, label: str | None, given: Given, levels: tuple[float, ...], site: str, seed: int, out: Path
) -> None:
    """Linear probes of MODEL, against what the input gives."""
    import vdinterp as vd

    pipe = vd.load(model)
    held_out = given.held_out(pipe, seed)
    known = vd.studies.label_names(held_out)
    if not known:
        raise ValueError(
            f"{given.source or held_out.kind!r} holds no labels to probe for; give --clips FILE with tensors "
            "labels.NAME, one number a clip, frame or token (Clips(labels={'NAME': ...}).save(FILE))"
        )
    noised = vd.NoisedClips(pipe, held_out, noise_levels=levels, seed=seed)
    name = label or known[0]
    labels = vd.studies.labels_of(noised, name, noised.target)
    result = vd.probes.fit(
        noised, labels.values, site, names=labels.names, what=name, mask=labels.mask, max_tokens=16, seed=seed
    )
    click.echo(plain(result.summary()))
    write_report(result, out)
