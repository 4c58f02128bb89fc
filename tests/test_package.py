"""The package as a whole: public names, light imports, layers, and a README that is true."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import readme_tables

import vdinterp

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "Ablate",
    "ActivationCache",
    "AttentionExplorer",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Contrast",
    "Custom",
    "DiffusionConfig",
    "Freeze",
    "HistoryGuidance",
    "HookedVideoDiT",
    "MaskAttention",
    "NoisedClips",
    "Patch",
    "PatchEdges",
    "Result",
    "RotateRope",
    "SetCondition",
    "SetNoiseLevel",
    "Steer",
    "TokenGrid",
    "TransferAttention",
    "VideoDiTConfig",
    "VideoDiffusion",
    "activation_patch",
    "analysis",
    "attribution_patch",
    "circuits",
    "data",
    "diffusion",
    "direct_attribution",
    "edge_attribution",
    "explorer",
    "faithfulness",
    "find_induction",
    "get_act_name",
    "grid",
    "induction_over_training",
    "interventions",
    "lens",
    "list_checkpoints",
    "list_families",
    "list_models",
    "load",
    "models",
    "modulation_atlas",
    "neurons",
    "organisms",
    "path_patch",
    "pipeline",
    "plotting",
    "probes",
    "report",
    "results",
    "studies",
    "sweep",
    "training",
    "tuned_lens",
    "vae",
}
HEAVY = ["anywidget", "diffusers", "sklearn", "ray", "crafter", "torchvision", "kaleido", "nnsight"]


def in_fresh_process(code: str) -> str:
    """Standard output of `code`, run without this suite's shape checks."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_public_names() -> None:
    assert set(vdinterp.__all__) == PUBLIC
    assert set(dir(vdinterp)) == PUBLIC | {"__version__"}
    for name in PUBLIC:
        assert getattr(vdinterp, name) is not None
    assert vdinterp.__version__
    with pytest.raises(AttributeError, match="no attribute 'HookedTransformer'; its public names are"):
        _ = vdinterp.HookedTransformer


def test_every_public_name_without_a_heavy_import() -> None:
    code = (
        "import json, sys, vdinterp\n"
        "bare = sorted(sys.modules)\n"
        "[getattr(vdinterp, name) for name in vdinterp.__all__]\n"
        "print(json.dumps([bare, sorted(sys.modules)]))"
    )
    bare, everything = json.loads(in_fresh_process(code).splitlines()[-1])
    assert "torch" not in bare, "import vdinterp alone is nearly free"
    assert "torch" in everything and "transformer_lens" in everything
    assert [name for name in HEAVY if name in everything] == []


def test_nothing_needs_torchvision() -> None:
    """Everything works where torchvision cannot be imported, as beside a CPU build of torch."""
    code = (
        "import sys\n"
        "sys.modules['torchvision'] = None\n"
        "import vdinterp\n"
        "[getattr(vdinterp, name) for name in vdinterp.__all__]\n"
        "from diffusers import AutoencoderKL\n"
        "print(vdinterp.load('tiny-crafter'))"
    )
    assert "VideoDiffusion" in in_fresh_process(code)


def test_layers() -> None:
    """The import-linter contracts of pyproject.toml."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_readme_tables_are_what_the_code_says() -> None:
    text = readme_tables.README.read_text(encoding="utf-8")
    assert readme_tables.updated(text) == text, "run: python tools/readme_tables.py"


def test_readme_example_runs() -> None:
    text = readme_tables.README.read_text(encoding="utf-8")
    example = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert in_fresh_process(example + "\nprint('ran to the end')").endswith("ran to the end\n")
