"""What can be read off the stream, and off the input alone."""

from __future__ import annotations

from pathlib import Path

import click

from vdinterp.cli.group import check_folder, main, plain

LEVELS = (0.3, 0.9)


@main.command()
@click.argument("model")
@click.option("--label", help="What to read: material, action, moved; digit, lag; position, velocity, occluded.")
@click.option("--clips", type=click.IntRange(min=10), default=96, show_default=True, help="How many clips.")
@click.option("--level", "levels", type=float, multiple=True, help="Noise level in (0, 1]; may be given again.")
@click.option("--site", default="resid_post", show_default=True, help="What is read: a hook name or alias.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of clips, noise and folds.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/probe"), show_default=True)
def probe(
    model: str, label: str | None, clips: int, levels: tuple[float, ...], site: str, seed: int, out: Path
) -> None:
    """Linear probes of MODEL by layer and noise level, against what the input alone gives; and a report."""
    import vdinterp as vd

    check_folder(out)
    pipe = vd.load(model)
    held_out = vd.studies.held_out_clips(pipe, clips, seed)
    known = vd.studies.label_names(held_out.kind)
    if not known:
        raise ValueError(f"{held_out.kind!r} clips have no ground truth to probe for; use vd.probes.fit with labels")
    noised = vd.NoisedClips(pipe, held_out, levels=levels or LEVELS, seed=seed)
    name = label or known[0]
    labels = vd.studies.labels_of(held_out, name, noised.target)
    result = vd.probes.fit(
        noised, labels.values, site, names=labels.names, what=name, mask=labels.mask, max_tokens=16, seed=seed
    )
    click.echo(plain(result.summary()))
    click.echo(f"\nReport: {vd.report.write(result, out)}")
