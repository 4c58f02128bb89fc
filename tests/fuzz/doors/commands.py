"""The command line: one option wrong, or a file in the way. One line on stderr, exit code 2, nothing computed."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner
from hypothesis import strategies as st

from fuzz import world
from fuzz.harness import Case
from vdinterp.cli import main

COMMANDS = ("heads", "lens", "attribute", "neurons", "patch", "probe", "induction")
WRONG: dict[str, tuple[str, ...]] = {
    "--level": ("0", "-1", "1.5", "949", "nan", "x", ""),
    "--seed": ("-1", "1.5", "x", ""),
    "--out": ("/dev/null/x", "/proc/nowhere/x", "{film}", "{film}/x", "/proc/x"),
    "--video": ("nowhere.mp4", "{bundle}/model.json", "/", "{bundle}/model.safetensors"),
}
MODELS = ("nonsense", "", "models/mine", "/nowhere", "{film}", "5", "tiny-inductoin", "{empty}")


class Refused(ValueError):
    """What a command said when it refused, raised here so that it is judged as any other refusal is."""


def lines() -> st.SearchStrategy[Case]:
    @st.composite
    def draw(draw: Any) -> Case:
        command = draw(st.sampled_from(COMMANDS))
        empty = world.FOLDER / "empty"
        empty.mkdir(exist_ok=True)
        where = {"film": world.film(), "bundle": world.bundle(), "empty": empty}
        out = ["--out", str(world.FOLDER / "out")]
        if draw(st.booleans()):
            arguments = [command, draw(st.sampled_from(MODELS)).format(**where), *out]
        else:
            option = draw(st.sampled_from(sorted(WRONG)))
            value = draw(st.sampled_from(WRONG[option])).format(**where)
            arguments = [command, "tiny-induction", *(out if option != "--out" else ()), option, value]

        def call() -> Any:
            result = CliRunner().invoke(main, arguments)
            if result.exit_code == 2 and (result.exception is None or isinstance(result.exception, SystemExit)):
                said = result.stderr.strip().splitlines()
                assert said and "Traceback" not in result.output, result.output
                raise SystemExit(" ".join(said)[-300:])
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise RuntimeError(f"traceback: {result.exception!r}") from result.exception
            return result.output

        return Case(" ".join(arguments), call)

    return draw()
