"""Training the bundled models anew."""

from __future__ import annotations

from pathlib import Path

import click

from vdinterp.cli.group import main
from vdinterp.cli.options import out_folder, resumable


@main.command()
@click.argument("name")
@click.option("--steps", type=click.IntRange(min=1), help="A shorter run, every stage shortened alike.")
@out_folder(None, "Folder for the model and saved state.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than that of the bundled weights.")
@resumable
def train(name: str, steps: int | None, out: Path, seed: int | None, resume: bool) -> None:
    """Train the bundled model NAME from nothing."""
    from vdinterp import training

    training.train(name, steps=steps, out=out, seed=seed, resume=resume)
    click.echo(f"Wrote {name} to {out}")
