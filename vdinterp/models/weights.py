"""The model's weights stacked over layers, in TransformerLens's shapes."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float

from vdinterp.models.components.linear import PLAIN, applied, has_own_forward
from vdinterp.models.config import VideoDiTConfig
from vdinterp.models.hooks import FactoredMatrix
from vdinterp.models.identity import identity
from vdinterp.models.spread import check_together

Stacked = Float[torch.Tensor, "layer ..."]


class WeightViews:
    """`model.W_Q[layer, head]` and so on, of self-attentions and MLPs, one entry per layer.

    Stacked copies: to edit weights, edit `model.blocks[layer].attn.W_Q`, which is a view of what is stored.
    Nothing is folded or centred: gates and modulations make TransformerLens's weight processing invalid here.
    A model some of whose blocks have no MLP raises `ValueError` for `W_in` and its kin; so does one whose linear layers
    were replaced or wrapped so that something else than the stored weight is applied, naming the layer.
    """

    blocks: Any
    cfg: VideoDiTConfig

    def _stacked(self, sublayer: str, name: str) -> Stacked:
        parts = [getattr(block, sublayer) for block in self.blocks]
        if any(part is None for part in parts):
            raise ValueError(f"Not every block has an {sublayer!r}; use model.blocks[layer].{sublayer}.{name}.")
        if any(getattr(part, name) is None for part in parts):
            raise ValueError(f"This model has no {name}: that projection carries no bias.")
        weights = [getattr(part, name) for part in parts]
        return torch.stack([weight.to(weights[0].device) for weight in weights])  # may be spread

    @property
    def W_Q(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_Q")

    @property
    def W_K(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_K")

    @property
    def W_V(self) -> Float[torch.Tensor, "layer head d_model d_head"]:
        return self._stacked("attn", "W_V")

    @property
    def W_O(self) -> Float[torch.Tensor, "layer head d_head d_model"]:
        return self._stacked("attn", "W_O")

    @property
    def W_in(self) -> Float[torch.Tensor, "layer d_model d_mlp"]:
        return self._stacked("mlp", "W_in")

    @property
    def W_out(self) -> Float[torch.Tensor, "layer d_mlp d_model"]:
        return self._stacked("mlp", "W_out")

    @property
    def b_Q(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_Q")

    @property
    def b_K(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_K")

    @property
    def b_V(self) -> Float[torch.Tensor, "layer head d_head"]:
        return self._stacked("attn", "b_V")

    @property
    def b_O(self) -> Float[torch.Tensor, "layer d_model"]:
        return self._stacked("attn", "b_O")

    @property
    def b_in(self) -> Float[torch.Tensor, "layer d_mlp"]:
        return self._stacked("mlp", "b_in")

    @property
    def b_out(self) -> Float[torch.Tensor, "layer d_model"]:
        return self._stacked("mlp", "b_out")

    @property
    def identity(self) -> str:
        """A hash of all weights: equal for equal ones, wherever they came from. Made once, and anew after an edit."""
        return identity(self)

    # Products of weights, as TransformerLens has them

    @property
    def OV(self) -> FactoredMatrix:
        """`W_V W_O` of every head, `[layer head d_model d_model]`, low rank.

        Weights alone. Misleads where modulation matters: AdaLN's scale stands before it, the gate after it, both set by
        the noise level; `vd.circuits.ov(model, layer, head, noise_level)` has them.
        """
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """`W_Q W_K^T` of every head, `[layer head d_model d_model]`, low rank.

        Weights alone: without modulation, biases and 1 / sqrt(d_head), and with rotary positions what a token looks for
        at its own place; `vd.circuits.qk(model, layer, head, noise_level, displacement)` has them.
        Raises `ValueError` where weights do not say what attention does (qk-norm, rotation over all heads at once).
        """
        if reason := undetermined(self):
            raise ValueError(
                f"{self.cfg.model_name}: {reason}; measure it: vd.circuits.qk_activations(model, cache, layer, head)"
            )
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def all_head_labels(self) -> list[str]:
        """`0.0`, `0.1` ..: heads as they are written here, layer by layer."""
        return [f"{layer}.{head}" for layer in range(self.cfg.n_layers) for head in range(self.cfg.n_heads)]

    def all_composition_scores(
        self, mode: Literal["Q", "K", "V"]
    ) -> Float[torch.Tensor, "layer head receiver_layer receiver_head"]:
        """`|W_OV W| / (|W_OV| |W|)` of the products of weights alone (`OV`, `QK`), 0 where the sender is not earlier.

        Chance is about `1 / sqrt(d_model)`. Misleads as `OV` and `QK` do: modulation, rotation and, in a normed stream,
        what lies between are left out; `vd.circuits.composition(model, noise_level)` folds them in, with chance.
        Raises `ValueError` for "Q" and "K" where weights do not say what attention does (qk-norm).
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"mode {mode!r}; choose 'Q', 'K' or 'V'")
        right = self.OV if mode == "V" else self.QK if mode == "Q" else self.QK.T
        left = self.OV
        # Collapsed, a factored matrix has its own norm and only its inner width.
        product = left.collapse_l()[:, :, None, None] @ right.collapse_r()
        scores = product.norm(dim=(-2, -1)) / left.norm()[:, :, None, None] / right.norm()
        layers = torch.arange(len(self.blocks), device=scores.device)
        return torch.where(layers[:, None, None, None] < layers[:, None], scores, 0.0)


def undetermined(model: Any) -> str:
    """Why weights alone do not say what a model's heads look at; empty where they do."""
    cfg = model.cfg
    if cfg.qk_norm is not None:
        return f"queries and keys are normalised ({cfg.qk_norm}), so products of weights do not say what attention does"
    if any(rope.over == "model" for rope in cfg.rope.values()):
        return "rotation runs over all heads together, so one head's weights do not say what it matches"
    return ""


def check_saves(model: Any) -> None:
    """Raise `ValueError` unless a model's tensors alone make it again; an adapter, another module or a hook would be
    lost."""
    check_together(model, "they cannot be saved from here")
    with torch.device("meta"):
        whole = type(model)(model.cfg)
    wanted = {name: value.shape for name, value in whole.state_dict().items()}
    found = {name: getattr(value, "shape", None) for name, value in model.state_dict().items()}
    if differing := [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]:
        raise ValueError(
            f"{model.cfg.model_name} has other tensors than its configuration makes ({', '.join(differing[:3])} ..): "
            "it could not be loaded again; merge or remove what replaced its layers first (peft: merge_and_unload())"
        )
    layers = dict(model.named_modules())
    for name, plain in whole.named_modules():
        layer: Any = layers.get(name)
        if isinstance(plain, PLAIN):
            applied(layer, name)
        elif type(layer) is not type(plain) or has_own_forward(layer):
            other = (
                "a forward of its own" if type(layer) is type(plain) else f"a {type(layer).__qualname__} in its place"
            )
            raise ValueError(
                f"{name or 'the model'} has {other}, which its tensors do not say: it could not be loaded again; put "
                f"back the {type(plain).__qualname__} that the configuration makes first"
            )
