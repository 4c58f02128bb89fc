"""Mean and standard deviation of each latent channel: models are trained on normalised latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float

from vdinterp.checks.settings import build, check_fields, pick


@dataclass(frozen=True)
class LatentStats:
    """`normalize` subtracts `mean` and divides by `std`, channel by channel; `unnormalize` undoes it.

    One value stands for all channels. ValueError when the lengths differ, a value is no finite number or a `std` is not
    positive.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if isinstance(value, int | float):  # one for all channels
                object.__setattr__(self, name, (value,))
        check_fields(self)
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"one mean and one std a channel, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive in every channel, got {self.std}")

    def normalize(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Raw latents of the VAE -> what the model is given."""
        mean, std = self._like(latents)
        return (latents - mean) / std

    def unnormalize(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """What the model gives -> raw latents of the VAE."""
        mean, std = self._like(latents)
        return latents * std + mean

    @classmethod
    def of(cls, latents: Float[torch.Tensor, "batch frame channel height width"]) -> LatentStats:
        """Measured over every axis but the channel's, in float64."""
        if latents.ndim != 5:
            raise ValueError(f"expected latents [batch frame channel height width], got {tuple(latents.shape)}")
        values = latents.double()
        std, mean = torch.std_mean(values, dim=(0, 1, 3, 4))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatentStats:
        """Inverse of `to_dict`. Raises `ValueError` on a field that is unknown, missing or of another type."""
        kind = tuple[float, ...]
        pick(data, "LatentStats", {"mean": kind, "std": kind})  # no defaults here: a file says both
        return build(cls, data)

    def _like(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if latents.ndim != 5:
            raise ValueError(f"expected latents [batch frame channel height width], got {tuple(latents.shape)}")
        if len(self.mean) not in (1, latents.shape[2]):
            raise ValueError(f"statistics of {len(self.mean)} channels, latents with {latents.shape[2]}")
        mean = latents.new_tensor(self.mean).view(-1, 1, 1)
        return mean, latents.new_tensor(self.std).view(-1, 1, 1)
