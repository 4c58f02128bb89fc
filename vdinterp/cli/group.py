"""The `vdinterp` command itself: errors in one line, logging, tables as text."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import click

from vdinterp.words.markup import plain as plain  # what every command prints a summary with

if TYPE_CHECKING:
    import pandas as pd

USER_ERRORS = (ValueError, KeyError, FileNotFoundError)
SYSTEM_ERRORS = (OSError, MemoryError, ImportError)  # a full disk, too little memory, an extra that is not installed


class OneLine(click.ClickException):
    """A mistake in what was asked for: one line, no traceback, exit code 2 (as click's own usage errors)."""

    exit_code = 2

    def __init__(self, error: BaseException) -> None:
        # str() of a KeyError is the repr of its message.
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        super().__init__(" ".join(message.split()) or type(error).__name__)


class NotHere(OneLine):
    """What this machine could not do: one line, exit code 1."""

    exit_code = 1


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output went away: click ends quietly
            raise
        except (*USER_ERRORS, *SYSTEM_ERRORS) as error:
            if ctx.params.get("debug"):
                raise
            raise (OneLine if isinstance(error, USER_ERRORS) else NotHere)(error) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vdinterp")
@click.option("--debug", is_flag=True, help="Show the full traceback of an error.")
def main(debug: bool) -> None:
    """Mechanistic interpretability of video diffusion transformers."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("vdinterp").setLevel(logging.DEBUG if debug else logging.INFO)


def echo_table(table: pd.DataFrame) -> None:
    """A table as aligned text, left-justified, every cell whole."""
    cells = [[str(column) for column in table.columns]]
    cells += [["" if value is None else str(value) for value in row] for row in table.itertuples(index=False)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width for width in widths]
    for row in (cells[0], rule, *cells[1:]):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
