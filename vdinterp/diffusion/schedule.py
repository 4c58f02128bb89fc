"""Noise schedules: how much signal and how much noise each level `k` holds.

Everybody else speaks of noise levels, shares in [0, 1]; here, and only here, they become levels `k` and the timesteps
that networks are fed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int

from vdinterp.checks.counts import check_count
from vdinterp.diffusion.config import DiffusionConfig

_MAX_LOGSNR = 15.0  # both ends of the Simple Diffusion schedule


def per_frame(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give `values` (`[batch frame]` or scalar) trailing axes so that it broadcasts against `like`."""
    return values.reshape(*values.shape, *(1,) * (like.ndim - values.ndim)).to(like.dtype)


def _cosine(n_levels: int) -> torch.Tensor:
    t = torch.linspace(0, n_levels, n_levels + 1, dtype=torch.float64) / n_levels
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (f / f[0])[1:]


def _cosine_simple_diffusion(n_levels: int, shift: float) -> torch.Tensor:
    t_min, t_max = math.atan(math.exp(-_MAX_LOGSNR / 2)), math.atan(math.exp(_MAX_LOGSNR / 2))
    t = torch.linspace(0, 1, n_levels, dtype=torch.float64)
    return torch.sigmoid(-2 * torch.log(torch.tan(t_min + t * (t_max - t_min))) + 2 * math.log(shift))


def _linear(n_levels: int) -> torch.Tensor:
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, n_levels, dtype=torch.float64), dim=0)


def _sigmoid(n_levels: int) -> torch.Tensor:
    t = torch.linspace(0, 1, n_levels + 1, dtype=torch.float64)
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    f = (high - torch.sigmoid(6 * t - 3)) / (high - low)
    return (f / f[0])[1:]


def _alpha_bar(cfg: DiffusionConfig) -> torch.Tensor:
    """Cumulative signal power of the variance-preserving schedules, float64, before the clipping of the betas."""
    if cfg.schedule == "cosine_simple_diffusion":
        return _cosine_simple_diffusion(cfg.n_levels, cfg.shift)
    ab = {"cosine": _cosine, "linear": _linear, "sigmoid": _sigmoid}[cfg.schedule](cfg.n_levels)
    if cfg.zero_terminal_snr:
        root = ab.sqrt()
        ab = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if cfg.shift != 1.0:
        ab = cfg.shift**2 * ab / (cfg.shift**2 * ab + 1 - ab)
    return ab


class NoiseSchedule:
    """The `K` noise levels of one `DiffusionConfig`: `x_k = signal[k] * x0 + sigma[k] * noise`.

    Attributes (all `[K]` float32 on the CPU, computed in float64):
        alphas_cumprod: signal power over total power; `logsnr` its log-odds (`-inf` at a level without signal).
        betas: forward variance of one level, `1 - alphas_cumprod[k] / alphas_cumprod[k-1]`, clipped to [1e-9, 1]
            (`sigmoid`: to [1e-9, 0.999]).
        signal, sigma: amplitudes. Variance preserving: `sqrt(alphas_cumprod)` and `sqrt(1 - alphas_cumprod)`;
            flow: `1 - sigma` and `sigma = s / (s + shift * (1 - s))` with `s = (k + 1) / K`.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        if config.path == "flow":
            s = torch.arange(1, config.n_levels + 1, dtype=torch.float64) / config.n_levels
            sigma = s / (s + config.shift * (1 - s))
            signal = 1 - sigma
            ab = signal**2 / (signal**2 + sigma**2)
        else:
            ab = _alpha_bar(config)
        most = 0.999 if config.schedule == "sigmoid" else 1.0  # Oasis keeps a trace of signal at its last level
        betas = torch.clip(1 - ab / torch.cat([torch.ones(1, dtype=ab.dtype), ab[:-1]]), 1e-9, most)
        if config.path == "vp":
            ab = torch.cumprod(1 - betas, dim=0)
            signal, sigma = ab.sqrt(), (1 - ab).sqrt()
        self.betas = betas.float()
        self.alphas_cumprod = ab.float()
        self.logsnr = torch.log(ab / (1 - ab)).float()
        self.signal = signal.float()
        self.sigma = sigma.float()

    def __len__(self) -> int:
        return self.config.n_levels

    def check_levels(self, k: torch.Tensor) -> None:
        """Raise `ValueError` unless `k` holds integers in `[-1, K-1]`."""
        if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise ValueError(f"levels k are integers in [-1, {len(self) - 1}], got a tensor of {k.dtype}")
        if k.numel() and (int(k.min()) < -1 or int(k.max()) >= len(self)):
            raise ValueError(
                f"levels k must be in [-1, {len(self) - 1}] (-1 is clean), got [{int(k.min())}, {int(k.max())}]"
            )

    def k(self, noise_levels: Any, name: str = "noise levels") -> torch.Tensor:
        """The levels `k`, integers in [-1, K-1], of noise levels, shares in [0, 1]: a tensor of any shape, or a number.

        `k = round(level * K) - 1`, so that 0 is -1, clean. The level of a flow model is its sigma.
        Raises `ValueError` for what is no share, naming the share that a level `k` would be.
        """
        given = noise_levels.detach() if isinstance(noise_levels, torch.Tensor) else noise_levels
        try:
            given = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{name}: {noise_levels!r:.80} is no share of noise, a number in [0, 1]") from None
        if given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"{name}: {given.dtype} is no share of noise, a number in [0, 1]")
        shares = given.float()
        if bool((outside := ~((shares >= 0) & (shares <= 1))).any()):
            first = float(shares[outside][0])
            whole = first.is_integer() and -1 <= first < len(self)
            share = float(self.level(torch.tensor(int(first)))) if whole else 0.0
            hint = f"; level k = {first:g} of {len(self)} is {share:g}" if whole else ""
            raise ValueError(f"{name} are shares of noise in [0, 1] (0 clean, 1 pure noise), got {first:g}{hint}")
        if self.config.path == "flow":
            shift = self.config.shift
            shares = shift * shares / (1 - shares + shift * shares)
        return (shares * len(self)).round().long() - 1

    def level(self, k: torch.Tensor) -> torch.Tensor:
        """The noise level of every level in `k`, float32: `(k + 1) / K`, of a flow model sigma; inverts `k`."""
        return self.coefficients(k)[1] if self.config.path == "flow" else (k + 1) / torch.tensor(float(len(self)))

    def coefficients(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(signal, sigma)` of every level in `k` (any shape); exactly `(1, 0)` where `k` is -1."""
        safe = k.clamp(min=0)
        signal = torch.where(k < 0, 1.0, self.signal.to(k.device)[safe])
        sigma = torch.where(k < 0, 0.0, self.sigma.to(k.device)[safe])
        return signal, sigma

    def alpha_bar(self, k: torch.Tensor) -> torch.Tensor:
        """`alphas_cumprod[k]`, 1 where `k` is -1; same shape as `k`."""
        return torch.where(k < 0, 1.0, self.alphas_cumprod.to(k.device)[k.clamp(min=0)])

    def add_noise(
        self,
        x0: Float[torch.Tensor, "batch frame channel height width"],
        noise: Float[torch.Tensor, "batch frame channel height width"],
        k: Int[torch.Tensor, "batch frame"],
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Diffuse every frame to its own level; frames at -1 come back bitwise unchanged.

        Raises:
            ValueError: `noise` or `k` does not fit `x0`, or a level is out of range.
        """
        if noise.shape != x0.shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, the latents {tuple(x0.shape)}; they must be equal")
        if k.shape != x0.shape[:2]:
            raise ValueError(f"levels have shape {tuple(k.shape)}; expected [batch frame] = {tuple(x0.shape[:2])}")
        self.check_levels(k)
        signal, sigma = (per_frame(c, x0) for c in self.coefficients(k))
        return torch.where(k[..., None, None, None] < 0, x0, signal * x0 + sigma * noise)

    def timestep(self, k: torch.Tensor) -> torch.Tensor:
        """What the network is fed for every level in `k`: `k` itself with -1 clamped to 0 (discrete networks),
        `precond_scale * logsnr[k]` (continuous ones; clean frames as level 0, logsnr kept within the +-15 (shifted)
        they were trained on), or `sigma` times `precond_scale or K` (flow networks, whose clean frames are 0).
        """
        cfg = self.config
        if cfg.path == "flow":
            return self.coefficients(k)[1] * (cfg.precond_scale if cfg.precond_scale is not None else cfg.n_levels)
        if cfg.precond_scale is None:
            return k.clamp(min=0)
        centre = 2 * math.log(cfg.shift)
        bounded = self.logsnr.clamp(centre - _MAX_LOGSNR, centre + _MAX_LOGSNR)
        return cfg.precond_scale * bounded.to(k.device)[k.clamp(min=0)]

    def k_of(self, timestep: torch.Tensor) -> torch.Tensor:
        """The levels `k >= 0` nearest to what a network was fed: inverts `timestep`, a clean frame counting as 0."""
        known = self.timestep(torch.arange(len(self), device=timestep.device))
        return (timestep.unsqueeze(-1).double() - known.double()).abs().argmin(-1)


def make_schedule(config: DiffusionConfig) -> NoiseSchedule:
    """The `NoiseSchedule` of `config`."""
    return NoiseSchedule(config)


def levels(steps: int, n_levels: int) -> Int[torch.Tensor, "step"]:
    """The `steps + 1` noise levels that a sampler of `steps` steps visits, ascending from -1 to `n_levels - 1`.

    Raises:
        ValueError: `steps` is not in `[1, n_levels]`.
    """
    check_count("steps", steps, high=n_levels, why="the model's noise levels")
    return torch.linspace(-1, n_levels - 1, steps + 1).long()
