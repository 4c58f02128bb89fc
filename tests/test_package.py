"""The package as a whole: public names, light imports, layers, and a README that is true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import readme_tables

import vdinterp

ROOT = Path(__file__).parent.parent

PUBLIC = {
    "NO_CONDITION",
    "Ablate",
    "Between",
    "ActivationCache",
    "AttentionExplorer",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Conditions",
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
    "Site",
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


def test_tables_are_what_the_code_says() -> None:
    made = readme_tables.tables()
    assert sorted(made) == sorted(name for names in readme_tables.PAGES.values() for name in names)
    for page in readme_tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert readme_tables.updated(text, page, made) == text, "run: python tools/readme_tables.py"


def test_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """Every block of Python, one after the other in one process, in an empty folder."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert {language for language, _ in fences} == {"python", "bash"}
    code = "\n".join(block for language, block in fences if language == "python")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "squared error" in line]
    assert errors[0] < 0.1 < errors[1], "what the comment in the first block says"
    assert {"neurons.html", "clips.safetensors", "mine", "out"} <= {path.name for path in tmp_path.iterdir()}


def test_readme_is_short_and_its_commands_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 190 and "docs/images/overview.png" in text
    from vdinterp.cli import main

    named = set(re.findall(r"^vdinterp (\w+)", text, re.MULTILINE))
    also = set(re.findall(r"`(\w+)`", text[text.index("Also `") : text.index(". Each analysis")]))
    assert named | also == set(main.commands)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not link.startswith(("http", "#")):
            assert ((ROOT / page).parent / link.split("#")[0]).exists(), link


def test_every_page_and_notebook_is_linked() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    notebooks = {f"../notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(one for one in pages | notebooks if f"]({one})" not in index) == []
