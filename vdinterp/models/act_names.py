"""Names of activations from shorthand, without a model."""

from __future__ import annotations

import difflib
import re

ATTENTION = (
    "q", "k", "v", "rot_q", "rot_k", "z", "result", "pattern", "attn_scores", "mask", "frame_mass", "mass", "sinks",
    "entropy", "displacement_kernel",
)  # fmt: skip
MLP = ("pre", "post")
SUBLAYER = ("in", "out", "mod.shift", "mod.scale", "mod.gate", "ln.scale", "ln.normalized")
BLOCK = ("resid_pre", "resid_mid", "resid_post", "attn_out", "cross_attn_out", "mlp_out")
WHOLE = ("patch_embed", "pos_embed", "noise_embed", "cond", "pred")
FINAL = ("in", "mod.shift", "mod.scale", "ln.scale", "ln.normalized")
SUBLAYERS = {"attn": "attn", "a": "attn", "ln1": "attn", "mlp": "mlp", "m": "mlp", "ln2": "mlp",
             "cross_attn": "cross_attn"}  # fmt: skip
ALSO = {  # what TransformerLens calls otherwise, or takes besides
    "embed": "patch_embed", "attn_logits": "attn_scores", "attn": "pattern", "query": "q", "key": "k", "value": "v",
    "mlp_pre": "pre", "mlp_post": "post", "scale": "ln.scale", "normalized": "ln.normalized", "gate": "mod.gate",
    "shift": "mod.shift",
}  # fmt: skip


def get_act_name(name: str, layer: int | None = None, layer_type: str | None = None) -> str:
    """The hook name behind a shorthand, as TransformerLens's helper of this name gives it.

    >>> vd.get_act_name("z", 3), vd.get_act_name("resid_post", 0), vd.get_act_name("mod.gate", 1, "mlp")
    ('blocks.3.attn.hook_z', 'blocks.0.hook_resid_post', 'blocks.1.mlp.mod.hook_gate')

    `layer_type`: "attn" (the default where both have it), "mlp" or "cross_attn"; TransformerLens's "a", "m", "ln1" and
    "ln2", and its "k6" and "scale4ln1", work too. A name in full comes back as it is. Without a layer: the embeddings,
    "pred", and the final layer's. Knows no model: `model.resolve_names("z")` gives the names that one has, all layers'.
    Raises `KeyError` for what no model has.
    """
    if layer is None and layer_type is None:
        if "hook_" in name:
            return name
        if short := re.fullmatch(r"([a-z_.]+?)(\d+)([a-z]\w*)?", name):
            return get_act_name(short[1], int(short[2]), short[3])
    known = ALSO.get(name, name)
    sublayer = SUBLAYERS.get(layer_type or ("mlp" if known in MLP else "attn"))
    if layer is None and layer_type is None and known in WHOLE:
        return f"hook_{known}"
    if layer is None and layer_type in (None, "final") and known in FINAL:
        return _written("final", known)
    if layer is not None and known in BLOCK and layer_type is None:
        return f"blocks.{layer}.hook_{known}"
    own = MLP if sublayer == "mlp" else ATTENTION
    if layer is not None and sublayer is not None and known in (*own, *SUBLAYER):
        return _written(f"blocks.{layer}.{sublayer}", known)
    known_names = (*WHOLE, *BLOCK, *ATTENTION, *MLP, *SUBLAYER)
    close = difflib.get_close_matches(name, known_names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "model.describe_hooks() lists them all"
    raise KeyError(f"no activation is called {name!r} with layer {layer} and layer_type {layer_type!r}; {hint}")


def _written(place: str, name: str) -> str:
    """`mod.gate` at `blocks.0.attn`: `blocks.0.attn.mod.hook_gate`."""
    head, _, last = name.rpartition(".")
    return ".".join(part for part in (place, head, f"hook_{last}") if part)
