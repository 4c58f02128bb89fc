"""Modulation atlas: what the noise level, and an action, make of every sublayer, from weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Shaped

from vdinterp.analysis.circuits.weights import check_model
from vdinterp.analysis.stream.modulation_result import NONE, OFF, ModulationAtlas
from vdinterp.models import HookedVideoDiT
from vdinterp.models.stream import modulations
from vdinterp.site import Site

__all__ = ["ModulationAtlas", "modulation_atlas"]

N_LEVELS = 41
OFF_COLUMNS = ["site", "from_level", "to_level", "lowest", "maximum", "maximum_level"]


def modulation_atlas(
    model: HookedVideoDiT,
    noise_levels: Shaped[torch.Tensor, " level"] | Sequence[float] | None = None,
    cond: Float[torch.Tensor, "action d_action"] | None = None,
) -> ModulationAtlas:
    """Shift, scale and gate of every sublayer as functions of the noise level and of the action, from weights alone.

    `rms`, `mean_abs`, `max_abs`, `mean`: of a part over its channels; `from_none`: root mean square of its difference
    from no action. `1 + scale` multiplies what is read, so a scale near -1 blinds a sublayer; a gate near 0 mutes it.
    `effective_depth(level)`: sum over gated sublayers of gate rms over its own maximum over levels, 0 to their number;
    the number itself if gates do not depend on the level. `open`: how many have at least 10 % of their maximum; ranges
    of levels with less are listed in `off`. `similarity`: cosine of all shifts, scales and gates at two levels, side by
    side; -1 to 1, 1 if they are the same.

    Args:
        noise_levels: shares in [0, 1]; default 41 of the model's own, from its lowest to 1.
        cond: actions to look at, one a row. Default: each alone (one-hot), for models that take any. "none" is what
            `cond=None` gives in a forward pass.

    Misleads: a gate says how loud a sublayer may be, not what it says or whether that matters; a sublayer's output may
    grow where its gate shrinks. One loud level makes a sublayer look switched off at all others: compare `lowest` and
    `maximum`. A part that is large and the same at all levels makes all of them similar. Levels between those of the
    grid are not looked at.
    Source: AdaLN-Zero (Peebles & Xie 2022, arXiv 2212.09748), whose gates start at 0.

    Raises ValueError for anything but a model, levels that are no shares, and actions that do not fit it.
    """
    check_model(model)
    levels = _grid(model, noise_levels)
    actions = _actions(model, cond)
    timestep = model.timestep(levels)
    plain = _by_site(modulations(model, timestep))
    rows = [_rows(plain, plain, levels, NONE)]
    for name, action in actions.items():
        given = modulations(model, timestep, action.expand(len(levels), -1))
        rows.append(_rows(_by_site(given), plain, levels, name))
    stacked = torch.cat([value.double() for value in plain.values()], 1)
    stacked = stacked / stacked.norm(dim=1, keepdim=True)  # NaN where nothing is modulated, as before any training
    gates = {site: value for (site, part), value in plain.items() if part == "gate"}
    depth, off = _depth(gates, levels)
    return ModulationAtlas(
        table=pd.concat(rows, ignore_index=True),
        depth=depth,
        off=off,
        similarity=(stacked @ stacked.T).clamp(-1, 1).float(),
        levels=tuple(levels.tolist()),
        meta={"model": model.cfg.model_name},
    )


Parts = Mapping[tuple[str, str], torch.Tensor]


def _by_site(found: Mapping[Site, torch.Tensor]) -> dict[tuple[str, str], torch.Tensor]:
    """`(site, part)`, `("0.attn", "gate")`, of `blocks.0.attn.mod.hook_gate`."""
    return {(site.label, site.alias): value.float().cpu() for site, value in found.items()}


def _rows(found: Parts, plain: Parts, levels: torch.Tensor, action: str) -> pd.DataFrame:
    parts = [
        pd.DataFrame(
            {
                "level": levels.double().numpy(),
                "site": site,
                "action": action,
                "part": part,
                "mean": value.mean(1).numpy(),
                "rms": _rms(value).numpy(),
                "mean_abs": value.abs().mean(1).numpy(),
                "max_abs": value.abs().amax(1).numpy(),
                "from_none": _rms(value - plain[site, part]).numpy(),
            }
        )
        for (site, part), value in found.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _rms(value: Float[torch.Tensor, "level d_model"]) -> Float[torch.Tensor, " level"]:
    return value.square().mean(1).sqrt()


def _depth(
    gates: Mapping[str, Float[torch.Tensor, "level d_model"]], levels: torch.Tensor
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Effective depth by level, and the ranges of levels at which a gate is closed."""
    at = levels.tolist()
    ranges: list[dict[str, Any]] = []
    if not gates:
        depth = pd.DataFrame(columns=["level", "effective_depth", "open", "gate_rms"], dtype=float)
        return depth, pd.DataFrame(columns=OFF_COLUMNS)
    sizes = torch.stack([_rms(gate).double() for gate in gates.values()])  # sublayer level
    maximum = sizes.amax(1, keepdim=True)
    share = torch.where(maximum > 0, sizes / maximum, 0.0)
    for site, size, closed in zip(gates, sizes, share < OFF, strict=True):
        edges = torch.diff(closed.int(), prepend=torch.zeros(1), append=torch.zeros(1))
        for start, end in zip((edges > 0).nonzero()[:, 0].tolist(), (edges < 0).nonzero()[:, 0].tolist(), strict=True):
            ranges.append(
                {
                    "site": site,
                    "from_level": at[start],
                    "to_level": at[end - 1],
                    "lowest": float(size[start:end].min()),
                    "maximum": float(size.max()),
                    "maximum_level": at[int(size.argmax())],
                }
            )
    depth = pd.DataFrame(
        {
            "level": at,
            "effective_depth": share.sum(0).numpy(),
            "open": (share >= OFF).sum(0).numpy(),
            "gate_rms": sizes.mean(0).numpy(),
        }
    )
    return depth, pd.DataFrame(ranges, columns=OFF_COLUMNS)


def _grid(model: HookedVideoDiT, given: Any) -> Float[torch.Tensor, " level"]:
    """The noise levels, ascending."""
    if given is None:
        model.timestep(0.0)  # raises for a model that does not know its own
        own = torch.linspace(0, len(model.schedule) - 1, N_LEVELS).round().long().unique()
        return model.schedule.level(own).double().round(decimals=6)
    model.timestep(given)
    levels = torch.as_tensor(given, dtype=torch.double).detach().cpu().flatten()
    if not len(levels):
        raise ValueError("noise_levels is empty; give shares in [0, 1], for example (0.3, 0.6, 0.9)")
    return levels.unique()


def _actions(model: HookedVideoDiT, cond: Any) -> dict[str, torch.Tensor]:
    cfg = model.cfg
    if cond is None:
        return {str(index): row for index, row in enumerate(torch.eye(cfg.d_action))}
    if not cfg.d_action:
        raise ValueError(f"{cfg.model_name} takes no actions; leave cond out")
    if not isinstance(cond, torch.Tensor) or cond.ndim != 2 or cond.shape[1] != cfg.d_action or not len(cond):
        shape = list(cond.shape) if isinstance(cond, torch.Tensor) else type(cond).__name__
        raise ValueError(f"cond {shape}: one action a row is needed, [any number, {cfg.d_action}]")
    return {str(index): row for index, row in enumerate(cond.float())}
