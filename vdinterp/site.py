"""Site: a place in the network as a value. The only file that cuts names of hooks up, or glues them together."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

ATTENTION = (
    "q",
    "k",
    "v",
    "rot_q",
    "rot_k",
    "z",
    "result",
    "pattern",
    "attn_scores",
    "mask",
    "frame_mass",
    "mass",
    "sinks",
    "entropy",
    "displacement_kernel",
)
MLP = ("pre", "post")
SUBLAYER = ("in", "out", "mod.shift", "mod.scale", "mod.gate", "ln.scale", "ln.normalized")
BLOCK = ("resid_pre", "resid_mid", "resid_post", "attn_out", "cross_attn_out", "mlp_out")
WHOLE = ("patch_embed", "pos_embed", "noise_embed", "cond", "pred")
FINAL = ("in", "mod.shift", "mod.scale", "ln.scale", "ln.normalized")
SUBLAYERS = {
    "attn": "attn",
    "a": "attn",
    "ln1": "attn",
    "mlp": "mlp",
    "m": "mlp",
    "ln2": "mlp",
    "cross_attn": "cross_attn",
}
ALSO = {  # what TransformerLens calls otherwise, or takes besides
    "embed": "patch_embed",
    "attn_logits": "attn_scores",
    "attn": "pattern",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
    "scale": "ln.scale",
    "normalized": "ln.normalized",
    "gate": "mod.gate",
    "shift": "mod.shift",
}


class Site(str):
    """A place in the network. It equals the name of its hook, so that it goes wherever one does.

    >>> Site(3, "attn", "z"), Site(3, what="resid_pre"), Site(1, "mlp", "mod.gate"), Site(what="pred")
    ('blocks.3.attn.hook_z', 'blocks.3.hook_resid_pre', 'blocks.1.mlp.mod.hook_gate', 'hook_pred')
    >>> Site.parse("blocks.3.attn.hook_z").layer, Site.parse(("z", 3)).sublayer
    (3, 'attn')

    `layer`: the block, None outside of them. `sublayer`: "attn", "cross_attn", "mlp", or "final" outside of blocks;
    None for what is a block's or the model's own. `what`: the activation; None: the sublayer (or block) itself, as in
    `Site(3, "attn")`, which is `blocks.3.attn`.
    """

    __slots__ = ("layer", "sublayer", "what")
    layer: int | None
    sublayer: str | None
    what: str | None

    def __new__(cls, layer: int | None = None, sublayer: str | None = None, what: str | None = None) -> Self:
        """Raises `ValueError` for a layer below 0 (a model counts from its end, a name does not), and for nothing."""
        if layer is not None and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
            raise ValueError(
                f"layer {layer!r} of a Site: give the number of a block, from 0, or None outside of blocks"
            )
        block = None if layer is None else f"blocks.{layer}"
        parts = [part for part in (block, sublayer, what and with_hook(what)) if part]
        if not parts:
            raise ValueError("a Site needs a layer, a sublayer or what activation it is")
        self = super().__new__(cls, ".".join(parts))
        for name, value in (("layer", layer), ("sublayer", sublayer), ("what", what)):
            object.__setattr__(self, name, value)
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Site is a value; make another one instead of setting {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Site, (self.layer, self.sublayer, self.what)

    @classmethod
    def parse(cls, given: str | tuple) -> Site:
        """The site of a name in full, of a key such as `("z", 3, "cross_attn")`, or of a shorthand of `get_act_name`.

        Raises `KeyError` for what no model has.
        """
        if isinstance(given, Site):
            return given
        return _parsed(given) if isinstance(given, str) else get_act_name(*given)

    @lru_cache(maxsize=2**14)  # noqa: B019
    def at(self, what: str) -> Site:
        """Another activation of the same sublayer (or block)."""
        return Site(self.layer, self.sublayer, what)

    @property
    def owner(self) -> Site | None:
        """The sublayer or block that it is of; None for the model's own."""
        return None if self.layer is None and self.sublayer is None else Site(self.layer, self.sublayer)

    @property
    def added(self) -> Site:
        """What its sublayer adds to the stream, after the gate."""
        return Site(self.layer, None, f"{self.sublayer}_out")

    @property
    def adds_of(self) -> str | None:
        """The sublayer, where it is what one adds to the stream: "mlp" of `blocks.0.hook_mlp_out`."""
        own = self.sublayer is None and self.layer is not None and self.what in BLOCK
        return self.what.removesuffix("_out") if own and self.what and self.what.endswith("_out") else None

    @property
    def alias(self) -> str:
        """What it is called for short: "gate" of `blocks.0.attn.mod.hook_gate`."""
        return (self.what or "").rpartition(".")[2]

    @property
    def kind(self) -> str:
        """ "mod" and "ln" for what is AdaLN's and the norm's, else nothing."""
        return (self.what or "").rpartition(".")[0]

    @property
    def label(self) -> str:
        """Its sublayer in figures and tables: "0.attn", "final"."""
        return ".".join(str(part) for part in (self.layer, self.sublayer) if part is not None)

    @property
    def template(self) -> str:
        """Its name with `{i}` for the layer, which is the same for all blocks."""
        return self if self.layer is None else self.replace(Site(self.layer), "blocks.{i}", 1)

    @property
    def component(self) -> str:
        """What components of its sublayer are called by, or begin with: "1" (heads `1.0`, ..), "cross.1", "mlp.1"."""
        return {"attn": "", "cross_attn": "cross."}.get(self.sublayer or "", f"{self.sublayer}.") + str(self.layer)

    def block(self, n_layers: int) -> int:
        """The block whose evaluation it takes part in; what is before all blocks, or drives all of them, counts as 0,
        the final layer and the prediction as `n_layers`."""
        if self.layer is not None:
            return self.layer
        return n_layers if self.sublayer == "final" or self.what == "pred" else 0


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> Site:
    """The hook name behind a shorthand, as TransformerLens's helper of this name gives it.

    >>> vd.get_act_name("z", 3), vd.get_act_name("resid_post", 0), vd.get_act_name("mod.gate", 1, "mlp")
    ('blocks.3.attn.hook_z', 'blocks.0.hook_resid_post', 'blocks.1.mlp.mod.hook_gate')

    `layer_type`: "attn" (the default where both have it), "mlp" or "cross_attn"; TransformerLens's "a", "m", "ln1" and
    "ln2", and its "k6" and "scale4ln1", work too. A name in full comes back as it is. Without a layer: the embeddings,
    "pred", and the final layer's. Knows no model: `model.resolve_names("z")` gives the names that one has, all layers'.
    Raises `KeyError` for what no model has.
    """
    if layer is None and layer_type is None:
        if name.rpartition(".")[2].startswith("hook_"):
            return Site.parse(name)
        if short := re.fullmatch(r"([a-z_.]+?)(\d+)([a-z]\w*)?", name):
            return get_act_name(short[1], int(short[2]), short[3])
    known = ALSO.get(name, name)
    sublayer = SUBLAYERS.get(layer_type or ("mlp" if known in MLP else "attn"))
    if layer is None and layer_type is None and known in WHOLE:
        return Site(what=known)
    if layer is None and layer_type in (None, "final") and known in FINAL:
        return Site(None, "final", known)
    if layer is not None and known in BLOCK and layer_type is None:
        return Site(layer, None, known)
    own = MLP if sublayer == "mlp" else ATTENTION
    if layer is not None and sublayer is not None and known in (*own, *SUBLAYER):
        return Site(layer, sublayer, known)
    known_names = (*WHOLE, *BLOCK, *ATTENTION, *MLP, *SUBLAYER)
    close = difflib.get_close_matches(name, known_names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "model.describe_hooks() lists them all"
    raise KeyError(f"no activation is called {name!r} with layer {layer} and layer_type {layer_type!r}; {hint}")


def with_hook(what: str) -> str:
    """How an alias ends a name: `mod.hook_gate` of "mod.gate"; one that is written so already comes back."""
    head, _, last = what.rpartition(".")
    last = last if last.startswith("hook_") else f"hook_{last}"
    return f"{head}.{last}" if head else last


def endings(name: str) -> list[str]:
    """All that a name may be called by its end: `blocks.0.attn.hook_z`, `0.attn.hook_z`, `attn.hook_z`, `hook_z`."""
    parts = name.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def count_layers(names: Iterable[str]) -> int:
    """How many blocks there are at least, by the names of what they hold."""
    return max((layer for name in names if (layer := _layer_and_rest(name)[0]) is not None), default=-1) + 1


@lru_cache(maxsize=2**14)
def _parsed(name: str) -> Site:
    layer, parts = _layer_and_rest(name)
    inside = ("final",) if layer is None else SUBLAYERS.values()
    sublayer = parts.pop(0) if parts and parts[0] in inside else None
    if layer is None and sublayer is None and not parts[-1].startswith("hook_"):
        return get_act_name(name)
    what = ".".join([*parts[:-1], *(part.removeprefix("hook_") for part in parts[-1:])])
    return Site(layer, sublayer, what or None)


def _layer_and_rest(name: str) -> tuple[int | None, list[str]]:
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
        return int(parts[1]), parts[2:]
    return None, parts


FINAL_LAYER = Site(None, "final")
PATCH_EMBED, POS_EMBED, NOISE_EMBED, COND, PRED = (Site(what=what) for what in WHOLE)
