"""ActivationCache: what was there during a forward pass, by name and layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file

from vdinterp import store
from vdinterp.conditions import Conditions
from vdinterp.grid import TokenGrid
from vdinterp.mask import Mask
from vdinterp.models.components.attention import text_keys
from vdinterp.models.decompose import Decomposition
from vdinterp.models.habits import Habits
from vdinterp.models.hooks import HookPoint, is_key, match_alias, match_key, unknown_hook
from vdinterp.models.identity import marks, same_weights
from vdinterp.models.memory import check_fits
from vdinterp.models.pattern import AttentionPattern
from vdinterp.site import PRED, Site, count_layers

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Key = str | tuple[str, int] | tuple[str, int, str]


class ActivationCache(Decomposition, Habits):
    """Activations of one forward pass.

    `cache["blocks.2.attn.hook_z"]`, `cache["z", 2]`, `cache["resid_post", -1]` (the last layer),
    `cache["mod.gate", 0, "mlp"]` (alias, layer, sublayer; without one the self-attention's is meant).
    `attn_scores` and `result` are computed on demand from what is there, unless they were recorded. So is `pattern`:
    an `AttentionPattern`, which answers questions without the N x N matrix: `cache["pattern", 2][clip, head]` computes
    one head's, `.materialize()` all.
    `accumulated_resid`, `decompose_resid`, `stack_head_results` take the residual stream apart. `cache[:4]` is the
    cache of the first clips. `inputs`: the `latents` and `timestep` that the model was given, where the cache was
    made by running it. `masks`: what interventions forbade, where it was kept as rules. `edited`: the activations that
    hooks changed in that run. `weights`: what told the model's weights from others (`vdinterp.models.identity.marks`),
    None where that is not known; what needs weights raises where the model has others.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], grid: TokenGrid, model: HookedVideoDiT | None = None) -> None:
        self.tensors, self.grid, self.model = tensors, grid, model
        self.edited: set[str] = set()
        self.inputs: dict[str, torch.Tensor] = {}
        self.masks: dict[str, Mask] = {}
        self.weights: torch.Tensor | None = None
        self.has_batch_dim = True

    @classmethod
    def of_run(
        cls,
        model: Any,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        cond: Conditions,
        weights: torch.Tensor,
    ) -> ActivationCache:
        """An empty cache for a forward pass of `model`, whose weights are `marks(model)`."""
        cache = cls({}, model.grid_of(latents), model)
        cache.inputs, cache.weights = {"latents": latents, "timestep": timestep}, weights
        if cond.text_mask is not None:
            cache.inputs["text_mask"] = cond.text_mask
        if (frames := model.hook_pred.ctx.get("frames")) is not None:
            cache.inputs["frames"] = frames
        return cache

    @property
    def frames(self) -> Int[torch.Tensor, "batch frame"]:
        """Which frame of the user's clip each of these is, -1 for padding: a sampler may show the network a window."""
        own = torch.arange(self.grid.n_frames).expand(max(1, self.n_clips), -1)
        return self.inputs.get("frames", own)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        clips = f"{self.n_clips} clips" if self.has_batch_dim else "one clip"
        size = f"{self.nbytes / 2**20:.1f} MiB"
        return f"ActivationCache({len(self)} activations of {clips}, {size}, grid {self.grid.shape})"

    def __contains__(self, key: object) -> bool:
        """Whether this one activation was recorded; what is computed on demand is not counted."""
        try:
            self._find(key)  # type: ignore[arg-type]
        except KeyError:
            return False
        return True

    def __getitem__(self, key: Any) -> Any:
        """An activation, by full name or `(alias, layer[, sublayer])`; with a slice (or a list) of clips the cache of
        these. Raises `KeyError` saying what would work."""
        if isinstance(key, (slice, list, torch.Tensor)):
            return self.apply_slice_to_batch_dim(key)
        if key not in self and (derived := self._derived(key)) is not None:
            return derived()
        return self._shown(self._get(key))

    def _get(self, key: Key) -> torch.Tensor:
        """A recorded activation, with its batch axis whatever `remove_batch_dim` shows."""
        name = self._find(key)
        return self._whole_mask(name) if name in self.masks else self.tensors[name]

    def _whole_mask(self, name: str) -> torch.Tensor:
        """A mask that was kept as rules, as `hook_mask` would have shown it. MemoryError where that would not fit."""
        mask, model = self.masks[name], self._model("A mask")
        check_fits(mask.shape.numel(), mask.device, name, "Patterns of this cache need no such matrix.")
        return mask.whole() if len(model.hook_dict[name].dims) == 5 else mask.whole().squeeze(1)

    def _shown(self, value: Any, axis: int = 0) -> Any:
        """What a user sees of it: without a batch axis if that was removed."""
        if self.has_batch_dim:
            return value
        return replace(value, has_batch_dim=False) if isinstance(value, AttentionPattern) else value.select(axis, 0)

    def _find(self, key: Key) -> str:
        names = self._matches(key, {**self.tensors, **self.masks} if self.masks else self.tensors)
        if len(names) == 1:
            return names[0]
        if names:
            raise KeyError(f"{key!r} is ambiguous: {', '.join(names)}. Give the layer and sublayer, or the full name.")
        if self.model is not None and (known := self._matches(key, self.model.hook_names)):
            raise KeyError(f"{known[0]!r} was not cached. Run again with it in names=[...]; cached: {self._stock()}.")
        raise unknown_hook(self._written(key), self.model.hook_names if self.model is not None else self.tensors)

    def _matches(self, key: Key, names: Iterable[str]) -> list[str]:
        """The names that a key stands for; more than one is ambiguous."""
        if isinstance(key, str):
            return [key] if key in names else match_alias(key, names)
        if not is_key(key):
            raise KeyError(
                f"{key!r} is no key; use a hook name or (alias, layer[, sublayer]), e.g. ('z', 3), or cache[:4] for "
                "clips."
            )
        return match_key(key, names, self.n_layers)

    def _written(self, key: Key) -> str:
        """A key as the name it asks for."""
        if isinstance(key, str):
            return key
        return ".".join([Site(self._layer(key[1])), *key[2:], key[0]])

    def _stock(self) -> str:
        aliases = sorted({Site.parse(name).alias for name in self.tensors})
        return ", ".join(aliases) or "none"

    @property
    def n_layers(self) -> int:
        """Layers of the model, or those that the cache has something of."""
        if self.model is not None:
            return self.model.cfg.n_layers
        return count_layers(self.tensors)

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise KeyError(f"No layer {layer}: there are {self.n_layers}, so 0..{self.n_layers - 1} or negative.")
        return layer % self.n_layers

    # What is computed on demand

    def _derived(self, key: Any) -> Callable[[], torch.Tensor | AttentionPattern] | None:
        """How to compute what was not recorded: `("pattern", 3)`, `"blocks.3.attn.hook_pattern"` ..."""
        if isinstance(key, str):
            try:
                site = Site.parse(key)
            except KeyError:
                return None
            key = (site.what, site.layer, site.sublayer)
        if not is_key(key) or (len(key) == 3 and key[2] == "mlp"):
            return None
        makers = {
            "pattern": self.pattern,
            "attn_scores": self.attn_scores,
            "result": partial(self.head_results, gated=False),
        }
        return partial(makers[key[0]], *key[1:]) if key[0] in makers else None

    def _check_edited(self, key: Any) -> None:
        """Raise `ValueError` for what follows from an activation that a hook replaced: it would be computed without."""
        known = self.model.hook_names if self.model is not None else self.edited
        for name in self._matches(key, known):
            site = Site.parse(name)
            changed = self.edited & {name, *([site.at("attn_scores")] if site.what == "pattern" else [])}
            if changed:
                raise ValueError(
                    f"A hook changed {', '.join(sorted(changed))} in this run, so that what would be computed here is "
                    f"not what the model used. Record it: names=[..., {name!r}]."
                )

    def _model(self, purpose: str) -> HookedVideoDiT:
        if self.model is None:
            raise ValueError(f"{purpose} needs the model's weights: set cache.model, or load the cache with model=.")
        return self.model

    def _weights(self, purpose: str) -> HookedVideoDiT:
        """The model, whose weights are those of the run. Raises `ValueError` where they are others or missing."""
        model = self._model(purpose)
        if self.weights is not None and not same_weights(self.weights, marks(model)):
            raise ValueError(
                f"{purpose}: {model.cfg.model_name} has other weights than those that this cache was made with "
                "(another checkpoint, or changed or cast since then); take the model as it was, or run it again"
            )
        return model

    def check_weights(self, purpose: str) -> None:
        """Raise `ValueError`, beginning with `purpose`, where the model has other weights than those of the run."""
        self._weights(purpose)

    def attn_scores(self, layer: int, sublayer: str = "attn") -> Float[torch.Tensor, "*batch head query key"]:
        """Scaled dot products from the cached `rot_q`, `rot_k`; masked ones are -inf. Shapes as `hook_attn_scores`.

        The mask is the model's own, or the one that interventions put there while the cache was made.
        """
        self._check_edited(("attn_scores", layer, sublayer))
        attention = self._model("An attention pattern").sublayer(self._layer(layer), sublayer)
        q, k = self._get(("rot_q", layer, sublayer)), self._get(("rot_k", layer, sublayer))
        return self._shown(attention.scores(q, k, self.grid, self._mask(layer, sublayer)))

    def pattern(self, layer: int, sublayer: str = "attn") -> AttentionPattern:
        """The pattern behind the cached `rot_q`, `rot_k`: answers questions about it, never holding it whole.

        The mask is the model's own, or the one that interventions put there while the cache was made. Where a hook
        edited scores or pattern this raises ValueError: record `pattern` itself.
        """
        self._check_edited(("pattern", layer, sublayer))
        attention = self._model("An attention pattern").sublayer(self._layer(layer), sublayer)
        mask = self._mask(layer, sublayer)
        q, k = self._get(("rot_q", layer, sublayer)), self._get(("rot_k", layer, sublayer))
        return self._shown(attention.pattern(q, k, self.grid, mask))

    def _mask(self, layer: int, sublayer: str) -> Mask | None:
        """What this pass masked beyond the model's own: by hooks, or text tokens that are none."""
        if (rules := self.masks.get(Site(self._layer(layer), sublayer, "mask"))) is not None:
            return rules
        hooked = ("mask", layer, sublayer)
        if hooked in self:
            return Mask.hooked(self._get(hooked).bool())
        return text_keys(self.inputs.get("text_mask")) if sublayer == "cross_attn" else None

    def head_results(self, layer: int, sublayer: str = "attn", gated: bool = True) -> torch.Tensor:
        """What each head adds to the stream, `[batch pos head d_model]`: `z` through W_O, times the gate.

        With the gate (the default) the heads and the gated bias sum to `attn_out`; without it they are `result`,
        which sums to `out` less the bias.
        """
        self._weights("A head's result")
        layer = self._layer(layer)
        self._check_edited(("result", layer, sublayer))
        place = Site(layer, sublayer)
        if not gated:
            return self._shown(self._result(layer, sublayer))
        self._check_written(place, "heads")
        result = self._result(layer, sublayer)
        return self._shown(self.carry().wrote(place, result.movedim(2, 0)).movedim(0, 2))

    def _result(self, layer: int, sublayer: str) -> torch.Tensor:
        return self._model("A head's result").sublayer(layer, sublayer).head_results(self._get(("z", layer, sublayer)))

    # Whole-cache operations

    def stack_activation(
        self, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None
    ) -> Float[torch.Tensor, "layer ..."]:
        """An activation (`"z"`) of every layer that has it, stacked in front. `layer`: only of layers before that one;
        None, -1 and `n_layers` are all.

        Raises `KeyError` if no layer's was cached, `ValueError` if the layers' shapes differ (scores over space and
        over time) or for patterns that were not recorded as tensors.
        """
        alias, sublayer = activation_name, sublayer_type
        stop = self.n_layers if layer is None or layer == -1 else layer
        if not 1 <= stop <= self.n_layers:
            raise KeyError(
                f"No layers before {layer}: there are {self.n_layers}, so 1..{self.n_layers}; None or -1: all."
            )
        keys: list[Any] = [(alias, at, sublayer) if sublayer else (alias, at) for at in range(stop)]
        found = [self[key] for key in keys if key in self]
        if not found and self._derived(keys[0]) is not None:
            found = [self[key] for key in keys]
        if not found:
            self._find(keys[0])
        if any(isinstance(tensor, AttentionPattern) for tensor in found):
            raise ValueError(
                "Patterns are held as queries and keys; stack what you ask of them, or materialize() each."
            )
        if len({tensor.shape for tensor in found}) > 1:
            shapes = " and ".join(str(list(shape)) for shape in dict.fromkeys(tensor.shape for tensor in found))
            raise ValueError(f"{alias!r} has another shape in other layers ({shapes}); take them one by one.")
        return torch.stack(found)

    def stack(self, alias: str, sublayer: str | None = None) -> Float[torch.Tensor, "layer ..."]:
        """`stack_activation` of all layers."""
        return self.stack_activation(alias, sublayer_type=sublayer)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ActivationCache:
        """The same activations on another device or in another floating dtype."""
        moved = {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in self.tensors.items()
        }
        inputs = {
            name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
            for name, value in self.inputs.items()
        }
        cache = self._like(moved, inputs)
        cache.masks = {name: mask.to(device) for name, mask in self.masks.items()}
        return cache

    def _like(self, tensors: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> ActivationCache:
        """Other tensors of the same run."""
        cache = ActivationCache(tensors, self.grid, self.model)
        cache.inputs, cache.edited, cache.weights = inputs, set(self.edited), self.weights
        cache.has_batch_dim, cache.masks = self.has_batch_dim, dict(self.masks)
        return cache

    @property
    def nbytes(self) -> int:
        """Bytes held; an activation that two names share counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors.values()}
        return sum(storages.values())

    def save(self, path: str | Path) -> None:
        """Write `path.safetensors` and `path.json` (grid, model name, what tells its weights from others, shapes)."""
        path = _stem(path)
        about: dict[str, Any] = {"grid": list(self.grid.shape)}
        about["model_name"] = self.model.cfg.model_name if self.model is not None else None
        about["weights"] = None if self.weights is None else " ".join(f"{mark:.9g}" for mark in self.weights.tolist())
        about["edited"], about["has_batch_dim"] = sorted(self.edited), self.has_batch_dim
        tensors = {**self.tensors, **{name: self._whole_mask(name) for name in self.masks}}
        about["shapes"] = {name: list(tensor.shape) for name, tensor in tensors.items()}
        files = {
            f"{path.name}.safetensors": store.tensors_file(tensors),
            f"{path.name}.json": json.dumps(about, indent=1),
        }
        store.write_files(path.parent, files)

    @classmethod
    def load(cls, path: str | Path, model: HookedVideoDiT | None = None) -> ActivationCache:
        """Read what `save` wrote. `model` is needed only for what is computed on demand.

        Raises `FileNotFoundError` when there is none, `ValueError` when it is of another model or of other weights, or
        cut short.
        """
        path = _stem(path)
        store.settle(path.parent)
        for part in (f"{path}.json", f"{path}.safetensors"):
            if not Path(part).exists():
                raise FileNotFoundError(f"No cache at {path}: cache.save() writes {path}.json and {path}.safetensors.")
        try:
            about, tensors = json.loads(Path(f"{path}.json").read_text()), load_file(f"{path}.safetensors")
        except (json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"The cache at {path} is not complete: {error}") from error
        if model is not None and about["model_name"] != model.cfg.model_name:
            raise ValueError(f"This cache is of model {about['model_name']!r}, not {model.cfg.model_name!r}.")
        cache = cls(tensors, TokenGrid(*about["grid"]), model)
        cache.edited, cache.has_batch_dim = set(about.get("edited", ())), about.get("has_batch_dim", True)
        if about.get("weights") is not None:  # older files do not say
            cache.weights = torch.tensor([float(mark) for mark in about["weights"].split()])
        if model is not None:
            cache._weights(f"The cache at {path}")
        return cache


def _stem(path: str | Path) -> Path:
    """A cache's path, given with or without the suffix of one of its two files."""
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


class Recording(Mapping[Any, ActivationCache]):
    """One cache per forward call: `recording[step]`, in order.

    The key is the sampler's `step` when there is one, otherwise the number of the call. A step that is run twice
    gets `(step, 1)`, `(step, 2)` ...: nothing is overwritten.
    """

    def __init__(self) -> None:
        self._caches: dict[Any, ActivationCache] = {}

    def __getitem__(self, step: Any) -> ActivationCache:
        if step not in self._caches:
            raise KeyError(f"Step {step!r} was not recorded; recorded are {list(self._caches)}.")
        return self._caches[step]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._caches)

    def __len__(self) -> int:
        return len(self._caches)

    def begin(self, step: Any, cache: ActivationCache) -> None:
        """Start the cache of another call."""
        key, repeat = (len(self) if step is None else step), 0
        while key in self._caches:
            repeat += 1
            key = (step, repeat)
        self._caches[key] = cache


def kept(activation: torch.Tensor, hook: HookPoint, device: torch.device | str | None) -> torch.Tensor:
    """What a cache holds of an activation: nothing that keeps more in memory, or that somebody else may edit."""
    tensor = activation.detach().to(device)
    # A slice of q|k|v would hold on to all three; the prediction is handed to the caller, who may edit it.
    if tensor.untyped_storage().nbytes() > tensor.nbytes or hook.name == PRED:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor
