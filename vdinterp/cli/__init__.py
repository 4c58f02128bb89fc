"""The `vdinterp` command. The only part of the library that prints; models and torch are imported when used."""

from vdinterp.cli import induction, listing, neurons, patch, probes, residual, studies, train
from vdinterp.cli.group import main
from vdinterp.cli.listing import models_table

__all__ = ["induction", "listing", "main", "models_table", "neurons", "patch", "probes", "residual", "studies", "train"]
