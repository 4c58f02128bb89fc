"""Diffusion settings of a model, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vdinterp.checks.settings import build, check_fields

Objective = Literal["eps", "x0", "v", "flow"]
Schedule = Literal["cosine", "cosine_simple_diffusion", "linear", "sigmoid", "flow"]

OBJECTIVES: tuple[str, ...] = get_args(Objective)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
MOST = 1_000_000  # levels, and of every factor: beyond it float32 holds nothing of a schedule


@dataclass(frozen=True)
class DiffusionConfig:
    """How a network was trained to be noised and what it predicts.

    Args:
        objective: what the network outputs: the noise `eps`, the clean latents `x0`, the velocity `v` (Salimans
            & Ho 2022) or the rectified-flow velocity `flow` = noise - x0.
        schedule: `cosine` (Nichol & Dhariwal 2021), `cosine_simple_diffusion` (Hoogeboom et al. 2023), `linear`
            (Ho et al. 2020), `sigmoid` (Jabri et al. 2022) or `flow` (straight paths, sigma = (k + 1) / K).
        n_levels: K, the number of noise levels; levels are `0 .. K-1` and `-1` is clean.
        clip: every noise draw (and every `eps` prediction) is clamped to +-clip.
        shift: multiplies the signal-to-noise *amplitude* ratio of every level; below 1 is more noise. (Flow models
            publish the reciprocal: their shift of 3 is 1/3 here.)
        precond_scale: `None` for a network that receives `k` itself; otherwise the network was trained on continuous
            levels and receives `precond_scale * logsnr[k]`. A flow network receives `sigma * (precond_scale or K)`.
        zero_terminal_snr: rescale `linear` so that the last level holds no signal (Lin et al. 2023).

    Raises:
        ValueError: an unknown name, a number out of range, or a combination that cannot be sampled.
    """

    objective: Objective = "v"
    schedule: Schedule = "cosine"
    n_levels: int = 1000
    clip: float = 20.0
    shift: float = 1.0
    precond_scale: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.n_levels <= MOST:
            raise ValueError(f"n_levels must be an integer of at least 2, at most {MOST}, got {self.n_levels!r}")
        for name in ("clip", "shift", "precond_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= MOST:
                raise ValueError(f"{name} must be a positive number, at most {MOST}, got {value!r}")
        if self.zero_terminal_snr and self.schedule != "linear":
            raise ValueError(f"zero_terminal_snr rescales the 'linear' schedule only, not {self.schedule!r}")
        ends_without_signal = self.schedule in ("cosine", "flow") or self.zero_terminal_snr
        if self.objective == "eps" and ends_without_signal:
            raise ValueError(
                "an 'eps' network says nothing about x0 at a level without signal, and the last level of schedule "
                f"{self.schedule!r} (zero_terminal_snr={self.zero_terminal_snr}) has none; use 'linear', 'sigmoid' or "
                "'cosine_simple_diffusion', or objective 'v', 'x0' or 'flow'"
            )

    @property
    def path(self) -> Literal["vp", "flow"]:
        """`vp`: signal^2 + sigma^2 = 1. `flow`: signal + sigma = 1."""
        return "flow" if self.schedule == "flow" else "vp"

    @property
    def told_k(self) -> bool:
        """Whether the network is told `k` itself, a whole number; otherwise a log-SNR or a scaled sigma."""
        return self.path == "vp" and self.precond_scale is None

    def _repr_html_(self) -> str:
        from vdinterp.plotting import settings

        return settings(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able dictionary; `from_dict` inverts it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> DiffusionConfig:
        """Inverse of `to_dict`. Raises `ValueError` on a field that is unknown or of another type."""
        return build(cls, d)
