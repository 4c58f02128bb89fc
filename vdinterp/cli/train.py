"""Training the bundled models anew."""

from __future__ import annotations

from pathlib import Path

import click

from vdinterp.cli.group import check_folder, main


@main.command()
@click.argument("name")
@click.option("--steps", type=click.IntRange(min=1), help="A shorter run, every stage shortened alike.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model and saved state.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than that of the bundled weights.")
@click.option("--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over.")
def train(name: str, steps: int | None, out: Path, seed: int | None, resume: bool) -> None:
    """Train the bundled model NAME from nothing."""
    from vdinterp import training

    check_folder(out)
    training.train(name, steps=steps, out=out, seed=seed, resume=resume)
    click.echo(f"Wrote {name} to {out}")
