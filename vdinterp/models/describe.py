"""What the hooks of a model are and what they would cost to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vdinterp.grid import TokenGrid
from vdinterp.models.components.statistics import STATISTICS
from vdinterp.models.hooks import HookPoint, Names, unknown_hook
from vdinterp.models.pattern import Partition, count_parts
from vdinterp.site import Site

if TYPE_CHECKING:
    import pandas as pd

    from vdinterp.models.config import VideoDiTConfig


class HookDescriptions:
    """What a `HookedVideoDiT` is in a few lines, its hook table and the cache estimate."""

    cfg: VideoDiTConfig
    hook_dict: dict[str, HookPoint]
    mod_dict: dict[str, Any]
    grid: Callable[..., TokenGrid]
    resolve_names: Callable[[Names], list[str]]
    cacheable_names: Callable[[Names | None], list[str]]
    dtype: torch.dtype
    device: torch.device
    parameters: Callable[[], Iterable[torch.Tensor]]

    def described(self) -> str:
        """Name, size and shape of the model, in a few lines; `print(model.cfg)` and `describe_hooks()` say more."""
        cfg, grid = self.cfg, self.grid()
        size = sum(parameter.numel() for parameter in self.parameters())
        kinds = dict.fromkeys((block.axis, *block.sublayers) for block in cfg.period)
        blocks = ", then ".join(f"{' + '.join(sublayers)} over {axis}" for axis, *sublayers in kinds)
        patch = " x ".join(map(str, cfg.patch_size[1:]))
        return (
            f"HookedVideoDiT {cfg.model_name}: {size:,} parameters, {self.dtype} on {self.device}\n"
            f"  latents: {cfg.n_frames} frames, {cfg.in_channels} channels, {cfg.height} x {cfg.width}; patches of "
            f"{patch}, so {' x '.join(map(str, grid.shape))} tokens\n"
            f"  {cfg.n_layers} blocks ({blocks}), residual {cfg.residual!r}: d_model {cfg.d_model}, {cfg.n_heads} "
            f"heads of {cfg.d_head}, d_mlp {cfg.d_mlp}\n"
            f"  {len(self.hook_dict)} hooks: describe_hooks()"
        )

    def describe_hooks(self) -> pd.DataFrame:
        """A table of all hooks: name (`{i}` for a layer), shape, meaning, which layers, and whether on demand only."""
        import pandas as pd

        rows: dict[tuple, list[int]] = {}
        for name, point in self.hook_dict.items():
            site = Site.parse(name)
            key = (site.template, " ".join(point.dims), point.meaning, point.lazy)
            rows.setdefault(key, []).extend([] if site.layer is None else [site.layer])
        table = [
            {"hook": name, "shape": shape, "meaning": meaning, "layers": self._layers(layers), "on demand": lazy}
            for (name, shape, meaning, lazy), layers in rows.items()
        ]
        return pd.DataFrame(table)

    def _layers(self, layers: list[int]) -> str:
        if len(layers) == self.cfg.n_layers:
            return "all"
        return ", ".join(map(str, layers))

    def hook_axes(self, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Axis names of one activation, and its shape for one clip of the length that the model was trained on."""
        return self.hook_dict[name].dims, self.hook_shape(name)

    def hook_shape(
        self, name: str, batch: int = 1, n_frames: int | None = None, n_text: int = 0, grid: TokenGrid | None = None
    ) -> tuple[int, ...]:
        """Shape of one activation for `batch` clips of `n_frames` frames, or of any `grid` (default: the sizes that the
        model was trained at), and `n_text` text tokens.

        Raises `KeyError` with the closest names if there is no such hook.
        """
        if name not in self.hook_dict:
            raise unknown_hook(name, self.hook_dict)
        grid, cfg = self.grid(n_frames) if grid is None else grid, self.cfg
        _, patch_h, patch_w = cfg.patch_size
        parent = self.mod_dict.get(Site.parse(name).owner or "")
        axis = getattr(parent, "axis", "3d")
        group = {"space": grid.tokens_per_frame, "time": grid.n_frames, "3d": grid.n_tokens}[axis]
        sizes = {
            "1": 1,
            "batch": batch,
            "frame": grid.n_frames,
            "pos": grid.n_tokens,
            "row*col": grid.tokens_per_frame,
            "query": group,
            "key": n_text if getattr(parent, "cross", False) else group,
            "head": cfg.n_heads,
            "d_head": cfg.d_head,
            "d_model": cfg.d_model,
            "d_mlp": cfg.d_mlp,
            "2T-1": 2 * grid.n_frames - 1,
            "2H-1": 2 * grid.n_rows - 1,
            "2W-1": 2 * grid.n_cols - 1,
            "part": grid.n_frames,
            "channel": cfg.out_channels,
            "height": grid.n_rows * patch_h,
            "width": grid.n_cols * patch_w,
        }
        return tuple(sizes[dim] for dim in self.hook_dict[name].dims)

    def names_before(self, stop: int | None, names: list[str]) -> list[str]:
        """Those of some hooks that fire in a pass that stops before a block (None: all). ValueError if none does."""
        if stop is None:
            return names
        n = self.cfg.n_layers
        found = [name for name in names if (site := Site.parse(name)).block(n) < (n if site.layer is None else stop)]
        if not found:
            raise ValueError(f"stop_at_layer={stop} ends the pass before {names[0]} and all else that is to be kept")
        return found

    def estimate_cache(
        self,
        names: Names | None = None,
        batch: int = 1,
        n_frames: int | None = None,
        n_text: int = 0,
        grid: TokenGrid | None = None,
    ) -> int:
        """Bytes that `run_with_cache(names=...)` would keep, without running anything. Sizes as of `hook_shape`.

        An upper bound: activations that are one and the same tensor (a block's `resid_post` and the next one's
        `resid_pre`) are held once. Raises `KeyError` for unknown names.
        """
        width = self.dtype.itemsize
        shapes = [(name, self.hook_shape(name, batch, n_frames, n_text, grid)) for name in self.cacheable_names(names)]
        return sum(math.prod(shape) * (1 if self.hook_dict[name].broadcasts else width) for name, shape in shapes)

    def estimate_stats(
        self,
        stats: Sequence[str],
        batch: int = 1,
        n_frames: int | None = None,
        partition: Partition = "frame",
        grid: TokenGrid | None = None,
    ) -> dict[str, int]:
        """What `run_with_stats(stats=...)` would need beyond the forward pass itself, without running anything.

        `result_bytes`: of the statistics, all layers; `working_bytes`: held at a time, of one layer; `flops`: of the
        passes over the patterns (masses in float32 ride along and take none of their own, only wider values).
        Raises `KeyError` for unknown names.
        """
        grid = self.grid(n_frames) if grid is None else grid
        n_parts = count_parts(partition, grid)
        result = working = flops = 0
        for name in self.resolve_names(list(stats)):
            site = Site.parse(name)
            attention = self.mod_dict[site.owner or ""]
            parted = "part" in self.hook_dict[name].dims
            shape = self.hook_shape(name, batch, grid=grid)
            result += 4 * math.prod((*shape[:-1], n_parts) if parted else shape)
            queries = torch.empty(batch, grid.n_tokens, attention.n_heads, attention.d_head, device="meta")
            cost = attention.pattern(queries, queries, grid).estimate()
            rides = STATISTICS[site.alias].rides
            columns = 4 * batch * attention.n_heads * grid.n_tokens * (n_parts if parted else grid.n_frames)
            working = max(working, 3 * columns if rides else 2 * cost["chunk_bytes"])
            flops += 0 if rides and self.dtype == torch.float32 else cost["flops"]
        return {"result_bytes": result, "working_bytes": working, "flops": flops}
