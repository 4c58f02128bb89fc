"""Where Python code cuts names of hooks up, or glues them together, by hand."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CUTTERS = {
    "split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix", "startswith", "endswith", "replace",
    "match", "fullmatch", "search", "sub", "compile", "findall",
}  # fmt: skip
PIECE = re.compile(r"hook_|\bblocks\b\\*\.|\bfinal\.|\bmod\.|\bln\.")
ELSE = (  # what has such names for another reason, each said
    "site.py",  # the one that may
    "models/components/",  # hook points are attributes there
    "models/loading/",  # keys of other people's checkpoints
)


def cuts(root: Path) -> list[str]:
    """`file:line: source` of every place beneath a package's folder."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not name.startswith(ELSE):
            text = path.read_text()
            lines = text.splitlines()
            found += [f"{name}:{line}: {lines[line - 1].strip()}" for line in sorted(_lines(ast.parse(text)))]
    return found


def _lines(tree: ast.AST) -> set[int]:
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr) and _is_cut(node)}


def _is_cut(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr):  # f"blocks.{layer}.attn.hook_z"; prose has blanks
        pieces = [part.value for part in node.values if isinstance(part, ast.Constant)]
        whole = "".join(map(str, pieces))
        return bool(PIECE.search(whole)) and not re.search(r"\s", whole)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CUTTERS:
        return any(PIECE.search(text) for argument in node.args for text in _texts(argument))
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        return any(PIECE.search(text) and not text.startswith("hook_") for text in _texts(node.left))
    # a suffix that is kept for later
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.match(r"\.[\w.]*hook_", node.value))


def _texts(node: ast.expr) -> list[str]:
    return [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]


if __name__ == "__main__":
    print("\n".join(cuts(Path(__file__).parents[1] / "vdinterp")))
