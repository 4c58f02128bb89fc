"""Readout: from the residual stream to the prediction, or to x0, as a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float

from vdinterp.checks.counts import check_indices
from vdinterp.diffusion import split_prediction
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.models.components import unpatchify
from vdinterp.models.parts import listed, tolerance
from vdinterp.pipeline import VideoDiffusion
from vdinterp.site import FINAL_LAYER, PRED

Latents = Float[torch.Tensor, "clip frame channel height width"]


class Readout:
    """The final layer of one run, for some frames. With a pipeline everything is in x0: `x0 = offset + factor * pred`.

    Raises ValueError for a cache without inputs, of other weights, or frames that it does not have.
    """

    def __init__(
        self, model: VideoDiffusion | HookedVideoDiT, cache: ActivationCache, frames: Sequence[int] | None = None
    ) -> None:
        self.pipe = model if isinstance(model, VideoDiffusion) else None
        self.model: HookedVideoDiT = model.model if isinstance(model, VideoDiffusion) else model
        if not isinstance(self.model, HookedVideoDiT) or not isinstance(cache, ActivationCache):
            raise ValueError(
                "give a pipeline or its model, and the cache of a run of it (model.run_with_cache); got "
                f"{type(model).__name__} and {type(cache).__name__}"
            )
        self.cache, n_frames = cache.batched, cache.grid.n_frames
        check_indices("frames", frames)
        self.frames = list(range(n_frames)) if frames is None else [int(frame) for frame in frames]
        if not self.frames or not all(0 <= frame < n_frames for frame in self.frames):
            raise ValueError(f"frames={frames}: the cache has frames 0..{n_frames - 1}")
        if self.pipe is not None and not cache.inputs:
            raise ValueError(
                "this cache does not hold what the model was given, so there is no x0 (a saved cache never does): make "
                "it with run_with_cache, or pass the bare model for its prediction"
            )
        if cache.model is not self.model:
            raise ValueError(f"this cache is of another model than {self.model.cfg.model_name}")
        cache.check_weights("The prediction")
        self.tokens = self.cache.grid.tokens(frames=self.frames)
        self._chosen = torch.as_tensor(self.tokens)
        self._carry = self.cache.carry(self._chosen)

    @property
    def unit(self) -> str:
        return "x0" if self.pipe is not None else "the model's prediction"

    @property
    def where(self) -> str:
        """ " at noise level 0.9" where the chosen frames share one, else nothing: for titles."""
        if self.pipe is None:
            return ""
        schedule = self.pipe.schedule
        levels = schedule.level(schedule.k_of(self.cache.inputs["timestep"][:, self.frames]))
        return f" at noise level {float(levels[0, 0]):.2g}" if bool((levels == levels[0, 0]).all()) else ""

    # The linear map and its constant

    def linear(self, part: Float[torch.Tensor, "clip pos d_model"]) -> Latents:
        """What a part of the stream (of the chosen tokens) contributes, LayerNorm's scale held."""
        return self._out(self._carry.enter(FINAL_LAYER, part))

    def constant(self) -> Latents:
        """What the final layer adds, whatever the stream holds: its shift and its bias."""
        weight, bias = self.model.final.weights
        shift = self._carry.shift(FINAL_LAYER)
        values = bias.expand(len(self.cache["resid_post", -1]), len(self.tokens), -1)
        if shift is not None:
            values = values + shift @ weight.T
        return self._scaled(self._latents(values))

    def normalised(self, stream: Float[torch.Tensor, "clip pos d_model"]) -> Latents:
        """The final layer applied to any stream, all tokens of the clip: its own LayerNorm statistics, with bias."""
        values = self.model.final.linear(self.cache.carry().entered(FINAL_LAYER, stream))[:, self._chosen]
        found = self._scaled(self._latents(values))
        return found if (offset := self.offset()) is None else found + offset

    def offset(self) -> Latents | None:
        """What x0 takes from the noisy latents; None for a bare model."""
        if self.pipe is None:
            return None
        return self._x0(torch.zeros_like(self._given), self._given)

    def total(self) -> Latents:
        """What the run predicted."""
        found = self._scaled(self.cache[PRED][:, self.frames])
        return found if (offset := self.offset()) is None else found + offset

    def check_sum(self, found: Latents, what: str) -> None:
        """Raise `ValueError` if what should be the prediction misses it by more than rounding."""
        total = self.total()
        missing = float((found - total).norm() / total.norm().clamp(min=1e-12))
        doubted = self.cache.edited & {FINAL_LAYER.at("in"), FINAL_LAYER.at("ln.normalized"), PRED}
        close = tolerance(self.model.dtype, bool(doubted))
        if not missing <= close and not float((found - total).abs().max()) <= close:
            changed = listed(self.cache.edited) or "an activation that this cache does not tell of"
            raise ValueError(
                f"{what} the prediction by {missing:.2g} of its size; {self.model.dtype} rounds by up to {close:.2g}: "
                f"a hook changed {changed} after what they are made of; run again without it"
            )

    def checked(self, direction: torch.Tensor) -> torch.Tensor:
        """A direction that broadcasts to the chosen frames' latents."""
        wanted = (len(self.frames), *self.cache[PRED].shape[2:])
        n_clips = len(self.cache[PRED])
        if not isinstance(direction, torch.Tensor):
            raise ValueError(f"direction is {type(direction).__name__}; give a tensor {list(wanted)}")
        if tuple(direction.shape) not in (wanted, (n_clips, *wanted)):
            raise ValueError(
                f"direction {list(direction.shape)}: {list(wanted)} (frame channel height width) is needed, or one for "
                f"each of {n_clips} clips"
            )
        return direction.to(self.cache[PRED])

    # Details

    def _out(self, entered: torch.Tensor) -> Latents:
        return self._scaled(self._latents(entered @ self.model.final.weights[0].T))

    def _latents(self, values: torch.Tensor) -> Latents:
        grid = replace(self.cache.grid, n_frames=len(self.frames))
        return unpatchify(values, self.model.cfg, grid)

    @property
    def _given(self) -> Latents:
        return self.cache.inputs["latents"][:, self.frames]

    def _scaled(self, pred: Latents) -> Latents:
        """The part of x0 that is linear in the prediction."""
        if self.pipe is None:
            return pred
        return self._x0(pred, torch.zeros_like(pred))

    def _x0(self, pred: Latents, given: Latents) -> Latents:
        assert self.pipe is not None
        schedule = self.pipe.schedule
        signal, sigma = schedule.coefficients(schedule.k_of(self.cache.inputs["timestep"][:, self.frames]))
        return split_prediction(self.pipe.diffusion.objective, pred, given, signal, sigma)[0]
