"""ActivationCache: what was there during a forward pass, by name and layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file

from vdinterp.grid import TokenGrid
from vdinterp.models.hooks import HookPoint, match_alias, unknown_hook

if TYPE_CHECKING:
    from vdinterp.models.hooked_video_dit import HookedVideoDiT

Key = str | tuple[str, int] | tuple[str, int, str]


class ActivationCache(Mapping[str, torch.Tensor]):
    """Activations of one forward pass.

    `cache["blocks.2.attn.hook_z"]`, `cache["z", 2]`, `cache["resid_post", -1]` (the last layer),
    `cache["mod.gate", 0, "mlp"]` (alias, layer, sublayer; without one the self-attention's is meant).
    `cache["pattern", l]`, `cache["attn_scores", l]` and `cache["result", l]` are computed on demand from what is there.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], grid: TokenGrid, model: HookedVideoDiT | None = None
    ) -> None:
        self._tensors, self.grid, self.model = tensors, grid, model

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} activations, {self.nbytes / 2**20:.1f} MiB, grid {self.grid.shape})"

    def __contains__(self, key: object) -> bool:
        try:
            self._find(key)  # type: ignore[arg-type]
        except KeyError:
            return False
        return True

    def __getitem__(self, key: Key) -> torch.Tensor:
        """An activation, by full name or `(alias, layer[, sublayer])`. Raises `KeyError` saying what would work."""
        derived = self._derived(key) if isinstance(key, tuple) else None
        if derived is not None and key not in self:
            return derived(*key[1:])
        return self._tensors[self._find(key)]

    def _find(self, key: Key) -> str:
        if isinstance(key, str):
            names = [key] if key in self._tensors else match_alias(key, self._tensors)
            wanted = key
        else:
            alias, layer, *sublayer = key
            block = f"blocks.{self._layer(layer)}."
            in_block = [name for name in self._tensors if name.startswith(block)]
            wanted = block + ".".join([*sublayer, alias])
            names = match_alias(alias, in_block)
            for chosen in sublayer or ["attn"]:
                within = [name for name in names if name.startswith(f"{block}{chosen}.")]
                names = within if sublayer or within else names
        if len(names) == 1:
            return names[0]
        if names:
            raise KeyError(f"{wanted!r} is ambiguous: {', '.join(names)}. Give the layer and sublayer, or the full name.")
        if self.model is not None and (known := match_alias(wanted, self.model.hook_names)):
            raise KeyError(f"{known[0]!r} was not cached. Run again with it among names=[...]; cached are {self._stock()}.")
        raise unknown_hook(wanted, self.model.hook_names if self.model is not None else self._tensors)

    def _stock(self) -> str:
        aliases = sorted({name.rpartition("hook_")[2] for name in self._tensors})
        return ", ".join(aliases) or "none"

    @property
    def n_layers(self) -> int:
        """Layers of the model, or those that the cache has something of."""
        if self.model is not None:
            return self.model.cfg.n_layers
        layers = [int(name.split(".")[1]) for name in self._tensors if name.startswith("blocks.")]
        return max(layers, default=-1) + 1

    def _layer(self, layer: int) -> int:
        if not -self.n_layers <= layer < self.n_layers:
            raise KeyError(f"Layer {layer} does not exist: {self.n_layers} layers, so 0..{self.n_layers - 1} or negative.")
        return layer % self.n_layers

    # What is computed on demand

    def _derived(self, key: tuple) -> Callable[..., torch.Tensor] | None:
        return {"pattern": self.pattern, "attn_scores": self.attn_scores, "result": self.head_results}.get(key[0])

    def _model(self, purpose: str) -> HookedVideoDiT:
        if self.model is None:
            raise ValueError(f"{purpose} needs the model's weights: set cache.model, or load the cache with model=.")
        return self.model

    def attn_scores(self, layer: int, sublayer: str = "attn") -> Float[torch.Tensor, "*batch head query key"]:
        """Scaled dot products from the cached `rot_q`, `rot_k`; masked ones are -inf. Shapes as `hook_attn_scores`."""
        attention = self._model("An attention pattern").sublayer(self._layer(layer), sublayer)
        return attention.scores(self["rot_q", layer, sublayer], self["rot_k", layer, sublayer], self.grid)

    def pattern(self, layer: int, sublayer: str = "attn") -> Float[torch.Tensor, "*batch head query key"]:
        """Attention probabilities, computed from the cached `rot_q`, `rot_k`. A mask set by a hook is not known here."""
        scores = self.attn_scores(layer, sublayer)
        return scores.float().softmax(dim=-1).to(scores.dtype)

    def head_results(self, layer: int, sublayer: str = "attn", gated: bool = True) -> torch.Tensor:
        """What each head adds to the stream, `[batch pos head d_model]`: `z` through W_O, times the gate.

        With the gate (the default) the heads and the gated bias sum to `attn_out`; without, to `out` less the bias.
        """
        model = self._model("A head's result")
        result = model.sublayer(self._layer(layer), sublayer).head_results(self["z", layer, sublayer])
        name = f"blocks.{self._layer(layer)}.{sublayer}.mod.hook_gate"
        if not gated or name not in model.hook_dict:
            return result
        gate = self["mod.gate", layer, sublayer].repeat_interleave(self.grid.tokens_per_frame, dim=1)
        return result * gate.unsqueeze(2)

    # Whole-cache operations

    def stack(self, alias: str, sublayer: str | None = None) -> Float[torch.Tensor, "layer ..."]:
        """The activation `alias` of every layer that has it, stacked in front. Raises `KeyError` if none was cached."""
        found = [
            self[key]
            for layer in range(self.n_layers)
            if (key := (alias, layer, sublayer) if sublayer else (alias, layer)) in self
        ]
        if not found:
            self._find((alias, 0, sublayer) if sublayer else (alias, 0))
        return torch.stack(found)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ActivationCache:
        """A copy on another device or in another floating dtype."""
        moved = {
            name: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
            for name, tensor in self._tensors.items()
        }
        return ActivationCache(moved, self.grid, self.model)

    @property
    def nbytes(self) -> int:
        """Bytes held; an activation that two names share counts once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self._tensors.values()}
        return sum(storages.values())

    def save(self, path: str | Path) -> None:
        """Write `path.safetensors` and `path.json` (grid, model name, shapes)."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.clone().contiguous() for name, tensor in self._tensors.items()}, f"{path}.safetensors")
        about: dict[str, Any] = {"grid": list(self.grid.shape)}
        about["model_name"] = self.model.cfg.model_name if self.model is not None else None
        about["shapes"] = {name: list(tensor.shape) for name, tensor in self._tensors.items()}
        Path(f"{path}.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, path: str | Path, model: HookedVideoDiT | None = None) -> ActivationCache:
        """Read what `save` wrote. `model` is needed only for what is computed on demand."""
        path = Path(path)
        if not Path(f"{path}.json").exists():
            raise FileNotFoundError(f"No cache at {path}: {path}.json and {path}.safetensors are written by cache.save().")
        about = json.loads(Path(f"{path}.json").read_text())
        if model is not None and about["model_name"] != model.cfg.model_name:
            raise ValueError(f"This cache is of model {about['model_name']!r}, not {model.cfg.model_name!r}.")
        return cls(load_file(f"{path}.safetensors"), TokenGrid(*about["grid"]), model)


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


def keeper(
    store: Callable[[], dict[str, torch.Tensor]], device: torch.device | str | None = None, suffix: str = ""
) -> Callable[[torch.Tensor, HookPoint], None]:
    """A recording function that puts each activation into `store()` under its hook's name."""

    def keep(activation: torch.Tensor, hook: HookPoint) -> None:
        tensor = activation.detach().to(device)
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # a slice of q|k|v would hold on to all three
        store()[f"{hook.name}{suffix}"] = tensor

    return keep
