"""The attention explorer: where a patch of a clip attends, to click through, in a notebook or on a page of its own."""

from vdinterp.explorer.explorer import AttentionExplorer

__all__ = ["AttentionExplorer"]
