"""Every public name is one thing, and every name that the docs speak of is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vdinterp"
STUBS = sorted(PACKAGE.rglob("__init__.pyi"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "notebooks").glob("*.py"))]
ELSEWHERE = {"vdinterp/models/loading/FAMILY.py", "vdinterp/analysis/heads/_first_frame.py"}  # the reader writes it


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: str(stub.parent.relative_to(ROOT)))
def test_every_name_of_a_stub_means_one_thing(stub: Path) -> None:
    """A name that is public is no module's as well, or what it gives would hang on what was imported before."""
    package = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    for node in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name
                value = getattr(package, alias.name)
                if node.module is None:
                    assert isinstance(value, ModuleType)
                else:
                    assert not isinstance(value, ModuleType) or value.__name__.count(".") > package.__name__.count(".")
                    beside = [stub.parent / f"{alias.name}.py", stub.parent / alias.name / "__init__.py"]
                    assert isinstance(value, ModuleType) or not any(file.exists() for file in beside), alias.name


def texts(file: Path) -> list[str]:
    """The docstrings and comments of a source, or a page as it is."""
    text = file.read_text("utf-8")
    if file.suffix == ".md":
        return [text]
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return [one for one in strings if isinstance(one, str) and "`" in one]


def found(dotted: str) -> Any:
    """What a dotted name stands for: a module, or an attribute of one."""
    value: Any = importlib.import_module("vdinterp")
    at = "vdinterp"
    for part in dotted.split(".")[1:]:
        at = f"{at}.{part}"
        if not hasattr(value, part) and isinstance(value, ModuleType):
            value = importlib.import_module(at)
        else:
            value = getattr(value, part)
    return value


@pytest.mark.parametrize("file", [*PAGES, *SOURCES], ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_points_nowhere(file: Path) -> None:
    """`vd.name`, `vdinterp.name` and paths of files, in docstrings and pages."""
    missing = []
    for text in texts(file):
        for name in re.findall(r"(?<![\w./])((?:vd|vdinterp)(?:\.[A-Za-z_]\w*)+)", text):
            dotted = "vdinterp." + name.partition(".")[2]
            if dotted.endswith((".py", ".md", ".json")):
                continue
            try:
                found(dotted)
            except (AttributeError, ImportError):
                missing.append(name)
        for path in re.findall(r"`([\w/]+/[\w/.]*\w\.(?:py|md|toml|txt))`", text):
            if path not in ELSEWHERE and not any((place / path).exists() for place in (ROOT, PACKAGE, file.parent)):
                missing.append(path)
    assert not missing
