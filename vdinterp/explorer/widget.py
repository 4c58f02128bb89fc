"""The explorer in a notebook: an anywidget that answers its front end's questions one row at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget

from vdinterp.explorer.encoding import quantised
from vdinterp.explorer.page import front_end, script

if TYPE_CHECKING:
    from vdinterp.explorer.explorer import AttentionExplorer

# Whatever is a widget's state is saved with the notebook by some front ends and by every tool that executes notebooks.
# So the state is only this: it asks for everything else, the script included.
LOADER = """
async function render(given) {
  const { model, el } = given;
  el.textContent = "The attention explorer waits for the kernel; if there is none, run this cell again.";
  const code = await new Promise((resolve) => {
    model.on("msg:custom", (answer) => answer.code && resolve(answer.code));
    model.send({ kind: "code" });
  });
  el.textContent = "";
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const module = await import(url);
  URL.revokeObjectURL(url);
  return module.default.render(given);
}
export default { render };
"""


class ExplorerWidget(anywidget.AnyWidget):
    """What a notebook shows of an `AttentionExplorer`. Its state holds no frames and no attention."""

    _esm = LOADER

    def __init__(self, explorer: AttentionExplorer) -> None:
        super().__init__()
        self.explorer = explorer
        self.on_msg(self._asked)

    def _asked(self, _: Any, question: dict[str, Any], __: Any) -> None:
        try:
            answer, buffers = self.answer(question)
        except Exception as error:
            # The front end waits for this very answer and shows why there is none; the kernel logs the rest.
            self.send({"id": question.get("id"), "error": f"{type(error).__name__}: {error}"})
            raise
        self.send({"id": question.get("id"), **answer}, buffers)

    def answer(self, question: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """The answer to a question of the front end, `kind` "code", "start", "row" or "wall", and its binary part."""
        from vdinterp.explorer.explorer import STEPS

        explorer = self.explorer
        if question["kind"] == "code":
            return {"code": front_end()}, []
        if question["kind"] == "start":
            layers, heads = range(explorer.n_layers), range(explorer.n_heads)
            info = explorer.info(layers, heads, STEPS, "row or column")
            return {"info": info, "css": script("explorer.css")}, [explorer.sheet[0]]
        name = list(explorer.patterns)[question["pass"]]
        if question["kind"] == "wall":
            levels, maxima = quantised(explorer.wall(name, question["token"], question["direction"]), STEPS)
            return {"tops": maxima.ravel().tolist(), "levels": STEPS}, [levels.tobytes()]
        wanted = (question[part] for part in ("layer", "head", "token", "direction"))
        levels, maximum = quantised(explorer.values(name, *wanted), STEPS)
        return {"top": float(maximum), "levels": STEPS}, [levels.tobytes()]
