"""What TransformerLens users type at a cache beside the activations: clips of it, and words that mean nothing here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from typing_extensions import Self

    from vdinterp.mask import Mask

log = logging.getLogger("vdinterp")

ELSEWHERE = {
    "logit_lens": "there is no vocabulary; vd.lens(pipe, cache) reads pictures off the stream before every block",
    "logit_attrs": "there is no vocabulary; vd.direct_attribution(pipe, cache, direction=..) splits the prediction",
    "cache_dict": "the activations by name are cache.tensors",
}


class Habits:
    """Choosing clips, the batch axis, autograd."""

    tensors: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    masks: dict[str, Mask]
    has_batch_dim: bool
    _like: Callable[..., Self]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            where = f": {ELSEWHERE[name]}" if name in ELSEWHERE else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{where}")

    @property
    def n_clips(self) -> int:
        """Clips that the cache is of; 0 if it is empty."""
        return max((len(tensor) for tensor in (*self.inputs.values(), *self.tensors.values())), default=0)

    def apply_slice_to_batch_dim(self, batch_slice: int | slice | Sequence[int] | torch.Tensor) -> Self:
        """The cache of some clips; of one, given as a number, without the batch axis. Tensors are shared.

        Raises `ValueError` for clips that it does not have, and without a batch axis.
        """
        n = self.n_clips
        if not self.has_batch_dim:
            raise ValueError("this cache is of one clip, its batch axis was removed: there is nothing to choose from")
        one = isinstance(batch_slice, int) and not isinstance(batch_slice, bool)
        if isinstance(batch_slice, tuple):  # TransformerLens's way to write a slice
            batch_slice = slice(*batch_slice)
        index: Any = torch.arange(n)[batch_slice] if isinstance(batch_slice, slice) else torch.as_tensor(batch_slice)
        index = index.nonzero()[:, 0] if index.dtype == torch.bool and index.shape == (n,) else index.reshape(-1)
        wrong = index.is_floating_point() or index.dtype == torch.bool or bool(((index < -n) | (index >= n)).any())
        if wrong or not len(index):
            raise ValueError(f"clips {batch_slice!r}: the cache has clips 0..{n - 1}; choose one or more")
        exact = slice(int(index[0]) % n, int(index[0]) % n + 1) if one else batch_slice
        exact = exact if isinstance(exact, slice) else index

        def chosen(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor[exact] if len(tensor) == n else tensor for name, tensor in tensors.items()}

        cache = self._like(chosen(self.tensors), chosen(self.inputs))  # masks may be one for all clips
        cache.masks = {name: mask.part(exact) for name, mask in self.masks.items()}
        return cache.remove_batch_dim() if one else cache

    def remove_batch_dim(self) -> Self:
        """Show activations without their batch axis, from now on. Raises `ValueError` unless the cache is of one clip.

        Patterns, stacks and parts of the stream follow. Analyses take such a cache as they take any.
        """
        if self.n_clips != 1:
            raise ValueError(f"the cache is of {self.n_clips} clips: choose one first, e.g. cache[:1]")
        self.has_batch_dim = False
        return self

    @property
    def batched(self) -> Self:
        """The same cache with its batch axis, whether or not it was removed."""
        if self.has_batch_dim:
            return self
        cache = self._like(self.tensors, self.inputs)
        cache.has_batch_dim = True
        return cache

    def toggle_autodiff(self, mode: bool = False) -> None:
        """`torch.set_grad_enabled(mode)`, for everything; `with torch.no_grad():` changes less."""
        log.warning("gradients are switched %s, for all of torch", "on" if mode else "off")
        torch.set_grad_enabled(mode)
