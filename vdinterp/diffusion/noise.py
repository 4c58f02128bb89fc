"""Where a sampler's random numbers come from.

Every draw belongs to one clip and one purpose (initial state, history of a branch at a step, ancestral noise of a
step), and each has its own generator. So a clip's noise depends on the seed and the clip's key only: not on the batch
size, not on the device, not on how many guidance branches there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from vdinterp.checks.counts import check_seed

_INITIAL, _HISTORY, _ANCESTRAL = 0, 1, 2


@runtime_checkable
class NoiseSource(Protocol):
    """Standard normal draws of the given shape `[batch frame channel height width]`, in sampling order."""

    def initial(self, shape: Sequence[int]) -> torch.Tensor:
        """The state sampling starts from."""
        ...

    def history(self, step: int, branch: int, shape: Sequence[int]) -> torch.Tensor:
        """What history frames are diffused with in one guidance branch at one step."""
        ...

    def ancestral(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        """What a stochastic (`eta > 0`) step adds."""
        ...


class SeededNoise:
    """Deterministic noise: clip `i` of the batch draws from `(seed, keys[i])`.

    Args:
        seed: non-negative integer.
        keys: one tuple of non-negative integers a clip, for instance `(index,)` or `(index, window)`.
    """

    def __init__(self, seed: int, keys: Sequence[tuple[int, ...]]) -> None:
        self.seed = check_seed(seed)
        self.keys = [tuple(int(part) for part in key) for key in keys]

    def _draw(self, kind: int, step: int, branch: int, shape: Sequence[int]) -> torch.Tensor:
        if len(shape) == 0 or shape[0] != len(self.keys):
            raise ValueError(f"noise was keyed for {len(self.keys)} clips, but {tuple(shape)} was asked for")
        clips = []
        for key in self.keys:
            words = np.random.SeedSequence(self.seed, spawn_key=(kind, step, branch, *key)).generate_state(2, np.uint32)
            # torch.Generator takes a signed 64-bit seed
            generator = torch.Generator().manual_seed((int(words[0]) << 31) ^ int(words[1]))
            clips.append(torch.randn(tuple(shape[1:]), generator=generator))
        return torch.stack(clips)

    def initial(self, shape: Sequence[int]) -> torch.Tensor:
        return self._draw(_INITIAL, 0, 0, shape)

    def history(self, step: int, branch: int, shape: Sequence[int]) -> torch.Tensor:
        return self._draw(_HISTORY, step, branch, shape)

    def ancestral(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        return self._draw(_ANCESTRAL, step, 0, shape)


class GivenNoise:
    """A given initial state (to share one noise between conditions); later draws come from `rest`."""

    def __init__(self, initial: torch.Tensor, rest: NoiseSource) -> None:
        self._initial = initial
        self._rest = rest

    def initial(self, shape: Sequence[int]) -> torch.Tensor:
        given = tuple(self._initial.shape)
        if given == tuple(shape):
            return self._initial
        if len(given) == len(shape) and given[0] == shape[0] and given[2:] == tuple(shape[2:]) and given[1] < shape[1]:
            tail = self._rest.initial(shape)[:, given[1] :]  # padding frames, which nobody sees
            return torch.cat([self._initial, tail.to(self._initial)], dim=1)
        raise ValueError(f"noise has shape {given}, sampling needs {tuple(shape)}")

    def history(self, step: int, branch: int, shape: Sequence[int]) -> torch.Tensor:
        return self._rest.history(step, branch, shape)

    def ancestral(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        return self._rest.ancestral(step, shape)


class RepeatedNoise:
    """Another source's noise, the same for `n` sets of its clips that follow one another in the batch."""

    def __init__(self, source: NoiseSource, n: int) -> None:
        self._source, self._n = source, n

    def _repeat(self, draw: Callable[[tuple[int, ...]], torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        return draw((shape[0] // self._n, *shape[1:])).repeat(self._n, *[1] * (len(shape) - 1))

    def initial(self, shape: Sequence[int]) -> torch.Tensor:
        return self._repeat(self._source.initial, shape)

    def history(self, step: int, branch: int, shape: Sequence[int]) -> torch.Tensor:
        return self._repeat(lambda one: self._source.history(step, branch, one), shape)

    def ancestral(self, step: int, shape: Sequence[int]) -> torch.Tensor:
        return self._repeat(lambda one: self._source.ancestral(step, one), shape)
