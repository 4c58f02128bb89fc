"""The doors of the library: where something from outside comes in. Each module draws cases for one or more of them."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzz.doors import analyses, commands, files, hooks, interventions, makers, models, pipeline
from fuzz.harness import Case

DOORS: dict[str, st.SearchStrategy[Case]] = {
    "checkpoint": models.checkpoints(),
    "configuration": models.configurations(),
    "video": files.videos(),
    "hook": hooks.hooks(),
    "intervention": interventions.interventions(),
    "intervention as JSON": interventions.json_texts(),
    "result folder": files.result_folders(),
    "command line": commands.lines(),
    "pipeline": pipeline.calls(),
    "analysis": analyses.calls(),
    "clips and files": makers.calls(),
}
