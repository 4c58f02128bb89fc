"""Running statistics of neurons: the largest values, mean and deviation, sums by group. None holds what it has seen."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int

MOST_PLACES = 2**32  # of patches times noise levels: a place takes the lower half of a 64-bit key
SIGN = 0x7FFFFFFF
NOTHING = -(2**63)


class RunningTop:
    """The `n` patches at which each neuron is most active, a patch once, at the noise level where it is most so.

    Of equal activations the earlier patch goes first, and of one patch's the earlier level, whatever the batches.
    Holds `n` integers of 64 bits a neuron, and as many again for each token that it is given at a time.
    """

    def __init__(self, n: int, n_levels: int) -> None:
        self.n, self.n_levels = n, n_levels
        self.keys: Int[torch.Tensor, "neuron rank"] | None = None

    def update(
        self, values: Float[torch.Tensor, "token neuron"], patches: Int[torch.Tensor, " token"], level: int
    ) -> None:
        """Take in tokens: which patch of all each one is, and the index of the noise level it was seen at."""
        keys = _keys(values, patches * self.n_levels + level)
        best = keys.topk(min(self.n, keys.shape[1])).values
        if self.keys is not None:
            both = torch.cat([self.keys, best], 1).sort(descending=True).values
            seen = self._place(both) // self.n_levels
            again = (seen.unsqueeze(2) == seen.unsqueeze(1)).tril(-1).any(2)  # a larger one stands before it
            best = both.masked_fill(again, NOTHING).sort(descending=True).values[:, : self.n]
        self.keys = best

    def result(self) -> tuple[Float[torch.Tensor, "neuron rank"], Int[torch.Tensor, "neuron rank"], torch.Tensor]:
        """Activations, largest first; the patch and the index of the level of each."""
        assert self.keys is not None and not (self.keys == NOTHING).any()
        order = (self.keys >> 32).to(torch.int32)
        values = (order ^ ((order >> 31) & SIGN)).view(torch.float32)
        place = self._place(self.keys)
        return values.cpu(), (place // self.n_levels).cpu(), (place % self.n_levels).cpu()

    @staticmethod
    def _place(keys: torch.Tensor) -> torch.Tensor:
        return MOST_PLACES - 1 - (keys & (MOST_PLACES - 1))


def _keys(
    values: Float[torch.Tensor, "token neuron"], places: Int[torch.Tensor, " token"]
) -> Int[torch.Tensor, "neuron token"]:
    """Integers in the order of the values, and of equal values (-0 and 0 as well) of the earlier place first."""
    bits = (values.float() + 0.0).T.contiguous().view(torch.int32)
    bits ^= (bits >> 31) & SIGN  # the bits of negative floats run backwards
    keys = bits.long()  # changed in place: these are the largest tensors here
    keys <<= 32
    keys |= MOST_PLACES - 1 - places
    return keys


class RunningMoments:
    """Count, mean, standard deviation and share above 0 of every neuron, float64 (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = self._active = torch.zeros(())

    def update(self, values: Float[torch.Tensor, "token neuron"]) -> None:
        n, total = len(values), self.count + len(values)
        variance, mean = torch.var_mean(values.double(), 0, correction=0)
        change = mean - self._mean.to(mean)
        self._squares = self._squares.to(mean) + variance * n + change.square() * (self.count * n / total)
        self._mean = self._mean.to(mean) + change * (n / total)
        self._active = self._active.to(mean) + (values > 0).sum(0)
        self.count = total

    @property
    def mean(self) -> Float[torch.Tensor, " neuron"]:
        return self._mean.cpu()

    @property
    def std(self) -> Float[torch.Tensor, " neuron"]:
        return (self._squares / self.count).sqrt().cpu()

    @property
    def active(self) -> Float[torch.Tensor, " neuron"]:
        return (self._active / self.count).cpu()


class RunningSums:
    """Sums over groups of tokens; a token may be in several."""

    def __init__(self) -> None:
        self._sums = self._counts = torch.zeros(())

    def update(self, values: Float[torch.Tensor, "token neuron"], members: Float[torch.Tensor, "group token"]) -> None:
        """`members`: 1 where a token is in a group, 0 where not."""
        members = members.to(values.device, torch.float64)
        self._sums = self._sums.to(members) + members @ values.double()
        self._counts = self._counts.to(members) + members.sum(1)

    @property
    def counts(self) -> Float[torch.Tensor, " group"]:
        return self._counts.cpu()

    @property
    def means(self) -> Float[torch.Tensor, "neuron group"]:
        """NaN where a group has no token."""
        return (self._sums / self._counts.unsqueeze(1)).T.cpu()


def correlation(
    moments: RunningMoments, means: Float[torch.Tensor, "neuron group"], counts: Float[torch.Tensor, " group"]
) -> Float[torch.Tensor, "neuron group"]:
    """Of a neuron's activation with being in a group, -1 to 1: `(mean in - mean out) sqrt(p (1 - p)) / std`, `p` the
    group's share of the tokens. NaN for a neuron that does not vary and for a group of no or all tokens."""
    share = counts / moments.count
    # mean in - mean out = (mean in - mean of all) / (1 - p)
    found = (means - moments.mean[:, None]) * (share / (1 - share)).sqrt() / moments.std[:, None]
    known = (share > 0) & (share < 1) & (moments.std > 0)[:, None]
    return torch.where(known, found.clamp(-1, 1), torch.nan)
