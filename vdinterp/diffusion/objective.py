"""What a network predicts, and how the four kinds convert into one another.

With `x = signal * x0 + sigma * noise`:

========  =============================  ======================================  ======================================
objective prediction                     x0                                      noise
========  =============================  ======================================  ======================================
`eps`   noise                          (x - sigma p) / signal                  p
`x0`    x0                             p                                       (x - signal p) / sigma
`v`     signal noise - sigma x0        (signal x - sigma p) / (signal^2 +      (sigma x + signal p) / (signal^2 +
                                         sigma^2)                                sigma^2)
`flow`  noise - x0                     (x - sigma p) / (signal + sigma)        (x + signal p) / (signal + sigma)
========  =============================  ======================================  ======================================

All four hold on any path; variance-preserving models have `signal^2 + sigma^2 = 1`, flow models `signal + sigma = 1`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from vdinterp.diffusion.config import OBJECTIVES
from vdinterp.diffusion.schedule import per_frame

Path = Literal["vp", "flow"]


def _check(*objectives: str) -> None:
    for objective in objectives:
        if objective not in OBJECTIVES:
            raise ValueError(f"unknown objective {objective!r}; choose one of {list(OBJECTIVES)}")


def _divisor(value: torch.Tensor, what: str) -> torch.Tensor:
    if bool((value == 0).any()):
        raise ValueError(f"{what}: the conversion divides by it")
    return value


def split_prediction(
    objective: str, pred: torch.Tensor, x: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(x0, noise)` implied by a prediction.

    Args:
        objective: what `pred` is.
        pred, x: prediction and noisy latents, same shape (`[batch frame channel height width]`).
        signal, sigma: amplitudes, `[batch frame]` or scalars.

    Raises:
        ValueError: unknown objective, `eps` at a level without signal, or `x0` at a level without noise.
    """
    _check(objective)
    a, s = per_frame(signal, x), per_frame(sigma, x)
    if objective == "eps":
        return (x - s * pred) / _divisor(a, "'eps' does not determine x0 at a level without signal"), pred
    if objective == "x0":
        return pred, (x - a * pred) / _divisor(s, "'x0' does not determine the noise at a level without noise")
    if objective == "v":
        power = a * a + s * s
        return (a * x - s * pred) / power, (s * x + a * pred) / power
    return (x - s * pred) / (a + s), (x + a * pred) / (a + s)


def join_prediction(
    objective: str, x0: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """The prediction of kind `objective` that corresponds to `x0` and `noise`; inverse of split_prediction."""
    _check(objective)
    if objective == "eps":
        return noise
    if objective == "x0":
        return x0
    if objective == "v":
        return per_frame(signal, x0) * noise - per_frame(sigma, x0) * x0
    return noise - x0


def amplitudes(alpha_bar: torch.Tensor | float, path: Path = "vp") -> tuple[torch.Tensor, torch.Tensor]:
    """`(signal, sigma)` of a cumulative signal power; on the flow path scaled so that they sum to 1."""
    ab = torch.as_tensor(alpha_bar)
    if path not in ("vp", "flow"):
        raise ValueError(f"unknown path {path!r}; choose 'vp' or 'flow'")
    signal, sigma = ab.sqrt(), (1 - ab).sqrt()
    total = signal + sigma if path == "flow" else torch.ones_like(signal)
    return signal / total, sigma / total


def _path(path: Any, *objectives: str) -> Any:
    return path if path is not None else ("flow" if "flow" in objectives else "vp")


def to_x0(
    objective: str, pred: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor | float, path: Path | None = None
) -> torch.Tensor:
    """Clean latents implied by `pred`. `path` says how `x` was noised: by default straight (`flow`) for the
    `flow` objective and variance preserving (`vp`) for the others. See `split_prediction` for errors."""
    return split_prediction(objective, pred, x, *amplitudes(alpha_bar, _path(path, objective)))[0]


def to_eps(
    objective: str, pred: torch.Tensor, x: torch.Tensor, alpha_bar: torch.Tensor | float, path: Path | None = None
) -> torch.Tensor:
    """Noise implied by `pred`; arguments as `to_x0`."""
    return split_prediction(objective, pred, x, *amplitudes(alpha_bar, _path(path, objective)))[1]


def convert(
    pred: torch.Tensor,
    x: torch.Tensor,
    alpha_bar: torch.Tensor | float,
    src: str,
    dst: str,
    path: Path | None = None,
) -> torch.Tensor:
    """Turn a prediction of kind `src` into one of kind `dst`; `path` defaults to flow if either is `flow`."""
    _check(src, dst)
    if src == dst:
        return pred
    signal, sigma = amplitudes(alpha_bar, _path(path, src, dst))
    x0, noise = split_prediction(src, pred, x, signal, sigma)
    return join_prediction(dst, x0, noise, signal, sigma)


def target(
    objective: str,
    x0: torch.Tensor,
    noise: torch.Tensor,
    alpha_bar: torch.Tensor | float,
    path: Path | None = None,
) -> torch.Tensor:
    """Training target of `objective` for clean latents `x0` and the `noise` that was added to them."""
    return join_prediction(objective, x0, noise, *amplitudes(alpha_bar, _path(path, objective)))
