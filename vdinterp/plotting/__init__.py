"""Figures from plain arrays and tables. Nothing here knows a model, a cache or a result."""

from vdinterp.plotting.attention import attention_strip, attention_video
from vdinterp.plotting.bars import bars
from vdinterp.plotting.circuit_graph import circuit_graph
from vdinterp.plotting.facts import facts, settings
from vdinterp.plotting.figures import Figures, static
from vdinterp.plotting.filmstrip import filmstrip
from vdinterp.plotting.heatmap import heatmap, layer_head
from vdinterp.plotting.lines import lines
from vdinterp.plotting.moving import moving_clips
from vdinterp.plotting.playing import Playing, play
from vdinterp.plotting.scatter import scatter
from vdinterp.plotting.sliced import sliced_heatmap
from vdinterp.plotting.template import CONFIG, PALETTE, TEMPLATE, finish
from vdinterp.plotting.tiles import tiles

__all__ = [
    "CONFIG",
    "PALETTE",
    "TEMPLATE",
    "Figures",
    "Playing",
    "attention_strip",
    "attention_video",
    "bars",
    "circuit_graph",
    "facts",
    "filmstrip",
    "finish",
    "heatmap",
    "layer_head",
    "lines",
    "moving_clips",
    "play",
    "scatter",
    "settings",
    "sliced_heatmap",
    "static",
    "tiles",
]
