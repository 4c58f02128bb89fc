"""Options that several commands share, spelt and explained once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from vdinterp.cli.files import check_out

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def out_folder(default: str | None, help: str = "Folder to write.") -> Decorator:
    """`--out`, tried before anything is computed; None: it has to be given."""

    def tried(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
        if value is not None and not ctx.resilient_parsing:
            check_out(value)
        return value

    # click takes a default of None, where one is passed, for the value
    given: dict[str, Any] = {"required": True} if default is None else {"default": default, "show_default": True}
    return click.option("--out", type=click.Path(path_type=Path), callback=tried, help=help, **given)


def noise_levels(default: Sequence[float] | None = None, otherwise: str = "") -> Decorator:
    """`--level`, once or several times. Without `default` the command decides, and `otherwise` says how."""
    note = f"  [default: {otherwise}]" if otherwise else ""
    shown: dict[str, Any] = {"default": default, "show_default": default is not None}
    help = f"Noise level in (0, 1]; may be given again.{note}"
    return click.option("--level", "levels", type=float, multiple=True, help=help, **shown)


def random_seed(of: str) -> Decorator:
    return click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help=f"Of {of}.")


resumable = click.option(
    "--resume/--fresh", default=True, show_default=True, help="Continue a stopped run, or start over."
)
engine = click.option("--engine", type=click.Choice(["inline", "ray"]), default="inline", show_default=True)
