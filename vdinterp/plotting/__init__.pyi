from ._bars import bars as bars
from ._circuit_graph import circuit_graph as circuit_graph
from ._facts import facts as facts, settings as settings
from ._filmstrip import filmstrip as filmstrip
from ._heatmap import heatmap as heatmap, layer_head as layer_head
from ._lines import lines as lines
from ._scatter import scatter as scatter
from ._tiles import tiles as tiles
from .attention import attention_strip as attention_strip, attention_video as attention_video
from .figures import Figures as Figures, static as static
from .moving import moving_clips as moving_clips
from .playing import Playing as Playing, play as play
from .sliced import sliced_heatmap as sliced_heatmap
from .template import CONFIG as CONFIG, PALETTE as PALETTE, TEMPLATE as TEMPLATE, finish as finish
