"""VideoDiffusion: a hooked model together with its VAE and its diffusion process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped

from vdinterp import store
from vdinterp.conditions import Cond, as_conditions
from vdinterp.diffusion import DiffusionConfig, make_schedule, split_prediction
from vdinterp.interventions import Intervention
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.models.checks import asked_names, check_habits
from vdinterp.models.hooks import HookFn, Names
from vdinterp.models.scopes import Scope
from vdinterp.models.spread import check_together
from vdinterp.pipeline import windows
from vdinterp.pipeline.checks import (
    check_device,
    check_latents,
    check_parts,
    levels_k,
)
from vdinterp.pipeline.options import SamplingOptions, with_options
from vdinterp.pipeline.sampling import SampleResult, StepState, collect, make_plan, run_plan
from vdinterp.vae import VAE, FrameMap, LatentStats
from vdinterp.vae.protocol import evaluating, vae_module


class VideoDiffusion:
    """Everything between a video and a video.

    Args:
        model: the transformer.
        vae: pixels to latents and back; None if there is none at hand (then only latents can be used).
        diffusion: how the model was trained to be noised and what it predicts.
        latent_stats: what latents are normalised by.
        meta: data, recipe, figures, licence ... of a trained model.

    Latents are always normalised, `[batch frame channel height width]`; noise levels are shares in [0, 1], `[batch
    frame]` or one for all frames: 0 clean, 1 pure noise. The model is told what it is fed at each (`model.schedule`).

    ValueError for a model that is no `HookedVideoDiT`, a VAE that cannot encode and decode, or statistics of other
    channels than the model's.
    """

    def __init__(
        self,
        model: HookedVideoDiT,
        vae: VAE | None,
        diffusion: DiffusionConfig,
        latent_stats: LatentStats | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        check_parts(model, vae, diffusion, latent_stats)
        self.model = model
        self.vae = vae
        self.diffusion = diffusion
        self.schedule = self.model.schedule = make_schedule(diffusion)
        self.latent_stats = LatentStats() if latent_stats is None else latent_stats
        self.meta = dict(meta or {})

    def __repr__(self) -> str:
        cfg = self.model.cfg
        return (
            f"VideoDiffusion({cfg.model_name}: {cfg.n_layers} layers, {cfg.n_heads} heads, {cfg.n_frames} frames of "
            f"{cfg.in_channels}x{cfg.height}x{cfg.width} latents, {self.diffusion.objective}-prediction, "
            f"{self.diffusion.n_levels} {self.diffusion.schedule} levels)"
        )

    def _repr_html_(self) -> str:
        from vdinterp.plotting import facts

        cfg, diffusion = self.model.cfg, self.diffusion
        n_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        driven = {"action channels": cfg.d_action, "text channels": cfg.d_text}
        rows = {
            "network": f"{cfg.n_layers} layers, {cfg.n_heads} heads, d_model {cfg.d_model}, d_mlp {cfg.d_mlp}; "
            f"{n_parameters:,} parameters, {str(self.dtype).removeprefix('torch.')} on {self.device}",
            "latents": f"{cfg.n_frames} frames of {cfg.in_channels}x{cfg.height}x{cfg.width}, patches of "
            f"{'x'.join(map(str, cfg.patch_size))}",
            "VAE": "none: latents only" if self.vae is None else type(self.vae).__name__,
            "diffusion": f"{diffusion.objective}-prediction, {diffusion.n_levels} {diffusion.schedule} levels",
            "condition": ", ".join(["noise level", *(f"{n} {what}" for what, n in driven.items() if n)]),
        }
        known = ("checkpoint", "clips", "license")
        rows |= {name: self.meta[name] for name in known if self.meta.get(name) is not None}
        return facts(f"VideoDiffusion: {cfg.model_name}", rows)

    @property
    def clip_kind(self) -> str | None:
        """The kind of clips that the model was made for, as its `meta["clips"]` says; None if it does not."""
        return self.meta.get("clips")

    @property
    def frame_map(self) -> FrameMap:
        """Which video frames a latent frame is made of: the VAE's own map, or one to one."""
        return self.vae if isinstance(self.vae, FrameMap) else FrameMap()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def identity(self) -> str:
        """A hash of what predictions depend on besides inputs: weights, architecture and diffusion process. Equal for
        equal ones, wherever they came from; weights are read once, and anew where they were edited since."""
        about = json.dumps([self.model.cfg.to_dict(), self.diffusion.to_dict()], sort_keys=True)
        return store.digest(f"{about}{self.model.identity}".encode())

    def to(self, *args: Any, **kwargs: Any) -> VideoDiffusion:
        """Move model and VAE to a device or dtype; returns the pipeline.

        ValueError for a device that is not there, and for a model that accelerate has spread over several places.
        """
        check_together(self.model, "it cannot be moved")
        for given in (*args, kwargs.get("device")):
            if given is not None and not isinstance(given, torch.dtype | torch.Tensor):
                check_device(given)
        self.model.to(*args, **kwargs)
        if (module := vae_module(self.vae)) is not None:
            module.to(*args, **kwargs)
        return self

    def _need_vae(self) -> VAE:
        if self.vae is None:
            raise ValueError(
                "this pipeline has no VAE, so it works on latents only; load it with vae=..., for example "
                "vdinterp.vae.IdentityVAE(channels) for a pixel model"
            )
        return self.vae

    def encode(
        self, video: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Video in [0, 1] to normalised latents `[batch frame channel height width]`.

        Raises:
            ValueError: another shape, type or range, NaN, or a pipeline without VAE.
        """
        vae = self._need_vae()
        if not isinstance(video, torch.Tensor) or video.ndim != 5:
            shape = list(video.shape) if isinstance(video, torch.Tensor) else type(video).__name__
            raise ValueError(f"a video is a tensor [batch frame channel height width] in [0, 1], got {shape}")
        if not video.is_floating_point():
            raise ValueError(f"a video is floating point in [0, 1], got {video.dtype}; divide 8-bit video by 255")
        if not video.numel():
            raise ValueError(f"a video of shape {list(video.shape)} is empty")
        low, high = (float(end) for end in torch.aminmax(video))
        if math.isnan(low):
            spoilt = video.isnan().flatten(2).any(-1).nonzero()[0].tolist()
            raise ValueError(f"a video is in [0, 1], got NaN, first in clip {spoilt[0]}, frame {spoilt[1]}")
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"a video is in [0, 1], got values in [{low:.3g}, {high:.3g}]")
        with evaluating(vae_module(vae)):
            latents = vae.encode(video.to(device=self.device, dtype=self.dtype))
        return self.latent_stats.normalize(latents)

    def decode(
        self, latents: Float[torch.Tensor, "batch frame channel height width"]
    ) -> Float[torch.Tensor, "batch _ _ _ _"]:
        """Normalised latents to video `[batch frame channel height width]` in [0, 1]."""
        vae = self._need_vae()
        check_latents(latents, self.model.cfg)
        with evaluating(vae_module(vae)):
            return vae.decode(self.latent_stats.unnormalize(latents.to(self.device))).clamp(0, 1)

    def add_noise(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        noise_levels: Shaped[torch.Tensor, "..."] | float,
        noise: Float[torch.Tensor, "batch frame channel height width"],
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """Diffuse every frame to its own noise level, or all of them to one; frames at 0 stay bitwise the same."""
        check_latents(latents, self.model.cfg)
        check_latents(noise, self.model.cfg, "noise")
        k = levels_k(noise_levels, len(latents), latents.shape[1], self.schedule)
        return self.schedule.add_noise(latents, noise, k.to(latents.device))

    def timestep(self, noise_levels: Any) -> torch.Tensor:
        """What the network is fed at these noise levels, shares in [0, 1]: a tensor of any shape, or a number."""
        return self.model.timestep(noise_levels)

    def denoise(
        self,
        noisy: Float[torch.Tensor, "batch frame channel height width"],
        noise_levels: Shaped[torch.Tensor, "..."] | float,
        cond: Cond = None,
        **resume: Any,
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """One forward pass, as an estimate of the clean latents `x0` (whatever the objective).

        `noise_levels`: shares of noise, one a frame or one for all. Frames at 0 are returned unchanged. Hooks,
        interventions and autograd apply as to the model itself; `hook.ctx` shows the `noise_levels`.
        `resume`: `start_at_layer`, `resid_pre` and `known`, to run the model from a block on.

        Raises:
            ValueError: a shape that does not fit the model, or a noise level outside [0, 1].
        """
        cfg = self.model.cfg
        check_latents(noisy, cfg)
        batch, frames = noisy.shape[:2]
        k = levels_k(noise_levels, batch, frames, self.schedule)
        cond = as_conditions(cond, cfg)
        cond.check(cfg, batch, frames)
        cond = cond.to(self.device, self.dtype)
        noisy, k = noisy.to(device=self.device, dtype=self.dtype), k.to(self.device)
        with self.model.hook_ctx(noise_levels=self.schedule.level(k)):
            pred = self.model(noisy, self.schedule.timestep(k), cond=cond, **resume)
        if self.diffusion.objective == "eps":
            pred = pred.clamp(-self.diffusion.clip, self.diffusion.clip)
        x0, _ = split_prediction(self.diffusion.objective, pred, noisy, *self.schedule.coefficients(k.clamp(min=0)))
        return torch.where((k < 0)[..., None, None, None], noisy, x0)

    # As the model's own, but in noise levels and x0

    def run_with_cache(
        self,
        noisy: Float[torch.Tensor, "batch frame channel height width"],
        noise_levels: Shaped[torch.Tensor, "..."] | float,
        cond: Cond = None,
        *,
        names: Names | None = None,
        names_filter: Names | None = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
    ) -> tuple[Float[torch.Tensor, "batch frame channel height width"], ActivationCache]:
        """`denoise`, and the activations behind it: `(x0, cache)`. `names` (or `names_filter`): what to keep, None: all
        but the N x N tensors; `device`: where; `remove_batch_dim`: without the batch axis, of one clip.

        >>> x0, cache = pipe.run_with_cache(noisy, 0.9, names=["resid_post", "rot_q", "rot_k"])
        """
        check_habits(None, remove_batch_dim, noisy)
        wanted = self.model.cacheable_names(asked_names(names, names_filter))
        with self.model.record(wanted, device) as recording:
            x0 = self.denoise(noisy, noise_levels, cond)
        cache = next(iter(recording.values()))  # a hook that calls the model makes further ones
        return x0, cache.remove_batch_dim() if remove_batch_dim else cache

    def run_with_hooks(
        self,
        noisy: Float[torch.Tensor, "batch frame channel height width"],
        noise_levels: Shaped[torch.Tensor, "..."] | float,
        cond: Cond = None,
        *,
        fwd_hooks: Sequence[tuple[Names, HookFn]] = (),
    ) -> Float[torch.Tensor, "batch frame channel height width"]:
        """`denoise` under hooks of your own, functions `(activation, hook) -> activation | None`.

        >>> x0 = pipe.run_with_hooks(noisy, 0.9, fwd_hooks=[("blocks.2.attn.hook_z", my_hook)])
        """
        with self.hooks(fwd_hooks):
            return self.denoise(noisy, noise_levels, cond)

    def hooks(self, fwd_hooks: Sequence[tuple[Names, HookFn]] = (), **more: Any) -> Scope:
        """Hooks on the model inside a `with` block: `pipe.denoise`, `pipe.sample` .. run under them."""
        return self.model.hooks(fwd_hooks, **more)

    def intervene(self, *interventions: Intervention) -> Scope:
        """Interventions on the model inside a `with` block, each checked against it first."""
        return self.model.intervene(*interventions)

    @with_options(SamplingOptions)
    def sample(
        self,
        context: Float[torch.Tensor, "batch frame channel height width"] | None = None,
        n_frames: int | None = None,
        *,
        keep_states: bool = False,
        **options: Any,
    ) -> SampleResult:
        """Generate the frames that `context` does not give.

        `context`: clean latents the clip starts with; with `mask` all `n_frames` frames, of which the known ones are
        used; None generates `batch` clips from nothing. `n_frames`: length of the clip, context included; default
        `model.cfg.n_frames`. A longer one is run at once, as the model was not trained; `rollout` continues a clip in
        windows of the length it was trained at. `keep_states`: also return the state before every step.
        Raises ValueError or KeyError for anything that does not fit, before any compute.
        """
        return collect(self, make_plan(self, context, n_frames, **options), keep_states)

    @with_options(SamplingOptions)
    def iterate(
        self,
        context: Float[torch.Tensor, "batch frame channel height width"] | None = None,
        n_frames: int | None = None,
        **options: Any,
    ) -> Iterator[StepState]:
        """`sample`, step by step: at any time only one step's activations are held.

        Everything is checked at once, not at the first step.
        """
        return run_plan(self, make_plan(self, context, n_frames, **options))

    def rollout(
        self, context: Float[torch.Tensor, "batch frame channel height width"], n_frames: int, **options: Any
    ) -> SampleResult:
        """Continue `context` beyond the model's window. See `vdinterp.pipeline.windows.rollout`."""
        return windows.rollout(self, context, n_frames, **options)

    def interpolate(
        self,
        latents: Float[torch.Tensor, "batch frame channel height width"],
        known: Bool[torch.Tensor, "frame"] | Sequence[bool] | None = None,
        **options: Any,
    ) -> SampleResult:
        """Fill unknown frames between known ones. See `vdinterp.pipeline.windows.interpolate`."""
        return windows.interpolate(self, latents, known, **options)
