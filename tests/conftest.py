"""Shape checking for the whole suite: every annotated vdinterp function checks its tensors' shapes while tests run.

Set VDINTERP_TYPECHECK=0 to run without (faster, and a traceback is shorter).
"""

from __future__ import annotations

import os

import torch

if os.environ.get("VDINTERP_TYPECHECK", "1") != "0":
    from jaxtyping import install_import_hook

    install_import_hook("vdinterp", "beartype.beartype")

# Small models gain nothing from more threads, and with several test processes they lose.
torch.set_num_threads(1)
