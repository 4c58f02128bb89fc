"""Where Python code cuts names of hooks up, or glues them together, by hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CUTTERS = {
    "split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix", "startswith", "endswith", "replace",
    "match", "fullmatch", "search", "sub", "compile", "findall",
}  # fmt: skip
PIECE = re.compile(r"hook_|\bblocks\b\\*\.|\bfinal\.")
PART = re.compile(PIECE.pattern + r"|\bmod\.|\bln\.")
NAMES = ("name", "hook", "hook_name", "hook.name", "site", "full", "key")
ELSE = (  # what has such names for another reason, each said
    "site.py",  # the one that may
    "models/components/",  # hook points are attributes there
    "models/loading/",  # keys of other people's checkpoints
    "pipeline/bundle.py",  # keys of our own
    "models/spread.py",  # names of parameters
)
OF_HEADS = (  # names such as "1.0" may be split there
    "plotting/_circuit_graph.py", "analysis/induction/search.py", "analysis/circuits/_composition.py",
    "analysis/stream/_direct_attribution.py", "models/decompose.py",
)  # fmt: skip


def cuts(root: Path) -> list[str]:
    """`file:line: source` of every place beneath a package's folder."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(ELSE):
            lines, tree = path.read_text().splitlines(), ast.parse(path.read_text())
            at = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr) and _is_cut(node, name)}
            found += [f"{name}:{line}: {lines[line - 1].strip()}" for line in sorted(at)]
    return found


def _is_cut(node: ast.expr, file: str) -> bool:
    if isinstance(node, ast.JoinedStr):  # f"blocks.{layer}.attn.hook_z"; prose has blanks
        pieces = [part.value for part in node.values if isinstance(part, ast.Constant)]
        whole = "".join(map(str, pieces))
        return bool(PIECE.search(whole)) and not re.search(r"\s", whole)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CUTTERS:
        if ast.unparse(node.func.value) in NAMES and file not in OF_HEADS and "." in _texts(*node.args):
            return "split" in node.func.attr or "partition" in node.func.attr
        return any(PART.search(text) for text in _texts(*node.args))
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        return any(PART.search(text) and not text.startswith("hook_") for text in _texts(node.left))
    # a suffix that is kept for later
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.match(r"\.[\w.]*hook_", node.value))
    )


def _texts(*nodes: ast.expr) -> list[str]:
    parts = [part for node in nodes for part in ast.walk(node)]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


if __name__ == "__main__":
    print("\n".join(cuts(Path(__file__).parents[1] / "vdinterp")))
