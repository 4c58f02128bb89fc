"""Lens: what the final layer makes of the stream before every block, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.intervals import bootstrap_mean
from vdinterp.analysis.stimulus.latents import pictures_of
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.analysis.stream.readout import Readout
from vdinterp.checks.counts import check_count, check_seed
from vdinterp.gradient_state import check_gradients, keep_grad_mode
from vdinterp.models import ActivationCache, HookedVideoDiT
from vdinterp.pipeline import VideoDiffusion
from vdinterp.progress import bar
from vdinterp.results import Result, Section
from vdinterp.site import FINAL_LAYER, PRED
from vdinterp.words.wording import plural

if TYPE_CHECKING:
    import plotly.graph_objects as go

NEEDED = ("resid_pre", "resid_post", FINAL_LAYER.at("mod.shift"), FINAL_LAYER.at("mod.scale"), PRED)
MOST_FRAMES = 8  # in a filmstrip
READ_OFF = 0.1  # of the variance: a lens this close to the prediction reads it off


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """An affine map for every layer, `x + x @ weight[layer] + bias[layer]`, in front of the final layer (Belrose et al.
    2023, arXiv 2303.08112). `losses` `[step]`: mean squared error of x0 while it was trained."""

    weight: Float[torch.Tensor, "layer d_model d_model"]
    bias: Float[torch.Tensor, "layer d_model"]
    losses: Float[torch.Tensor, " step"]

    def __call__(self, stream: Float[torch.Tensor, "clip pos d_model"], layer: int) -> torch.Tensor:
        return stream + stream @ self.weight[layer] + self.bias[layer]


@dataclass(frozen=True, kw_only=True, eq=False)
class LensResult(Result):
    """What the final layer makes of the stream before each block.

    `x0` `[layer clip frame channel height width]` of the chosen frames (a bare model: its prediction); entry `n_layers`
    is the prediction itself. `tuned`: the same through a tuned lens, if one was given. `video`, `tuned_video`: the
    first clip, decoded. `table`: `layer lens error low high`, mean squared distance to the final prediction over that
    prediction's variance about its channels' means, 95 % bootstrap interval over clips: 0 at the last layer.
    """

    title: str  # pyright: ignore[reportIncompatibleVariableOverride]
    x0: Float[torch.Tensor, "layer clip frame channel height width"]
    tuned: Float[torch.Tensor, "layer clip frame channel height width"] | None = None
    video: Float[torch.Tensor, "layer frame _ _ _"] | None = None
    tuned_video: Float[torch.Tensor, "layer frame _ _ _"] | None = None
    table: pd.DataFrame
    unit: str
    frames: list[int]

    def plot(self) -> dict[str, go.Figure]:
        """The error to the final prediction over layers, and the first clip layer by layer (a row a layer)."""
        title = f"{self.title}: distance to the final prediction ({self.unit})"
        figures = {
            title: plotting.lines(
                self.table,
                x="layer",
                y="error",
                color="lens",
                low="low",
                high="high",
                title=title,
                x_title=f"stream before block ({len(self.x0) - 1}: after all blocks)",
                y_title="squared distance over variance",
            )
        }
        return figures | self.strips()

    def strips(self) -> dict[str, go.Figure]:
        """The first clip as film strips, by caption."""
        return {
            title: plotting.filmstrip(rows, title=title, frame_labels=labels, x_title=axis)
            for title, rows, labels, axis in self._strips()
        }

    def _strips(self) -> list[tuple[str, dict[str, Any], list[str], str]]:
        """Filmstrips of the first clip: of one frame, a column a layer and a row a lens; of several, a row a layer."""
        videos = {"lens": self.video, "tuned lens": self.tuned_video}
        shown = {name: video.numpy() for name, video in videos.items() if video is not None}
        if not shown:
            return []
        steps = [_step(layer, len(self.x0)) for layer in range(len(self.x0))]
        title = f"{self.title}: {self.unit} read off before each block, one clip"
        if len(self.frames) == 1:
            return [(title, {name: video[:, 0] for name, video in shown.items()}, steps, "stream before block")]
        labels = [str(frame) for frame in self.frames[:MOST_FRAMES]]
        return [
            (f"{title} ({name})", {step: video[i, :MOST_FRAMES] for i, step in enumerate(steps)}, labels, "frame")
            for name, video in shown.items()
        ]

    def summary(self) -> str:
        """From which layer on the prediction is there, on these clips."""
        lines = []
        n_clips = int(self.x0.shape[1])
        for name in dict.fromkeys(self.table["lens"]):
            mine: Any = self.table[self.table["lens"] == name]
            far = mine[mine["error"] > READ_OFF]["layer"]
            first, last = 0 if not len(far) else int(far.max()) + 1, int(mine["layer"].max())
            lines.append(
                f"- {name}: " + (f"from the stream before block {first} on." if first < last else "at the end.")
            )
        few = (
            " One clip shows what it looks like and decides nothing: for a statement about the model take many "
            "(`vdinterp.analysis.stream._lens_curve.lens_curve`)."
        )
        return (
            f"From where on the prediction ({self.unit}) can be read off, to a tenth of its variance, on "
            f"{plural(n_clips, 'clip')}:\n\n" + "\n".join(lines) + (f"\n\n{few.strip()}" if n_clips == 1 else "")
        )

    def sections(self) -> list[Section]:
        """Of one clip the pictures alone: its numbers are not those of the model. Of several all."""
        if self.x0.shape[1] > 1:
            caption = "Distance to the final prediction; `low`, `high`: 95 % interval over clips"
            return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: self.table})]
        text = f"What the final layer makes of the stream before each block ({self.unit}), of one clip."
        return [Section(title=self.title, text=text, figures=self.strips() or self.plot())]


def lens(
    model: VideoDiffusion | HookedVideoDiT,
    cache: ActivationCache,
    *,
    frames: Sequence[int] | None = None,
    tuned: TunedLens | None = None,
) -> LensResult:
    """Read the stream before every block as if it were the last (nostalgebraist 2020, "logit lens").

    >>> pred, cache = pipe.model.run_with_cache(noisy, pipe.timestep(noise_levels))
    >>> vd.lens(pipe, cache).plot()

    The final layer, with its modulation at the run's noise levels and LayerNorm statistics of the stream it is given,
    is applied to `resid_pre` of every block and to the last `resid_post`; the latter is the prediction, exactly.

    Args:
        model: a pipeline gives x0 (decoded, where it has a VAE), a bare model what it predicts.
        cache: of `run_with_cache`, with at least `resid_pre`, `resid_post`, `final.mod.*` and `hook_pred`.
        frames: only these (default: all).
        tuned: also through this (`tuned_lens(noised)`).

    Misleads: early streams are in other bases than the last one's, so that a poor picture does not mean that nothing is
    there: that is what the tuned lens is for. At a low noise level x0 is mostly the input, whatever the stream holds;
    the error is to the final prediction, not to the truth.

    Raises ValueError for frames that do not exist, other weights than the run's and a prediction that a hook changed
    after the last stream; KeyError for activations that were not kept.
    """
    if tuned is not None and not isinstance(tuned, TunedLens):
        raise ValueError(f"tuned is {type(tuned).__name__}; give a TunedLens, made by vd.tuned_lens(noised)")
    readout = Readout(model, cache, frames)
    cache = readout.cache
    n_layers = readout.model.cfg.n_layers
    streams = [cache["resid_pre", layer] for layer in range(n_layers)] + [cache["resid_post", -1]]
    with torch.no_grad():
        plain = torch.stack([readout.normalised(stream) for stream in streams])
        readout.check_sum(plain[-1], "what the final layer makes of the last stream misses")
        through = None
        if tuned is not None:
            if len(tuned.weight) != n_layers or tuned.weight.shape[-1] != readout.model.cfg.d_model:
                raise ValueError(f"the tuned lens {list(tuned.weight.shape)} is of another model than this one")
            made = [readout.normalised(tuned(stream, layer)) for layer, stream in enumerate(streams[:-1])]
            through = torch.stack([*made, plain[-1]])
    rows = _errors(plain, "lens") + ([] if through is None else _errors(through, "tuned lens"))
    pipe = readout.pipe if readout.pipe is not None and readout.pipe.vae is not None else None
    return LensResult(
        title=f"Lens{readout.where}",
        x0=plain,
        tuned=through,
        table=pd.DataFrame(rows),
        unit=readout.unit,
        frames=readout.frames,
        video=None if pipe is None else pictures_of(pipe, plain[:, 0]),
        tuned_video=None if pipe is None or through is None else pictures_of(pipe, through[:, 0]),
        meta={
            "model": readout.model.cfg.model_name,
            "clips": plural(int(plain.shape[1]), "clip"),
            "frames read": readout.frames,
        },
    )


def _errors(x0: torch.Tensor, name: str) -> list[dict[str, Any]]:
    final = x0[-1]
    variance = (final - final.mean((0, 1, 3, 4), keepdim=True)).square().mean().clamp(min=1e-12)
    rows = []
    for layer, estimate in enumerate(x0):
        interval = bootstrap_mean((estimate - final).square().mean((1, 2, 3, 4)) / variance)
        rows.append(
            {
                "layer": layer,
                "lens": name,
                "error": float(interval.value),
                "low": float(interval.low),
                "high": float(interval.high),
            }
        )
    return rows


def _step(layer: int, n: int) -> str:
    return "all: the prediction" if layer == n - 1 else str(layer)


# The tuned lens


@on_noised_clips
def tuned_lens(noised: NoisedClips, *, steps: int = 300, lr: float = 1e-3, seed: int = 0) -> TunedLens:
    """Train an affine map for every layer so that the final layer makes the prediction of it.

    From the identity on, with Adam, on the noised frames of these clips at all their noise levels (one map for all);
    each step takes one batch of clips at one level. Loss: mean squared distance of x0 to the model's own x0. Judge it
    on other clips: `lens(pipe, cache, tuned=...)`.

    Raises ValueError for less than one step.
    """
    check_count("steps", steps)
    check_seed(seed)
    if isinstance(lr, bool) or not isinstance(lr, float | int) or not 0 < lr < math.inf:
        raise ValueError(f"lr must be a number above 0, got {lr!r}")
    check_gradients("tuned_lens")
    cfg = noised.model.cfg
    weight = torch.zeros(cfg.n_layers, cfg.d_model, cfg.d_model, device=noised.model.device, requires_grad=True)
    bias = torch.zeros(cfg.n_layers, cfg.d_model, device=noised.model.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=lr)
    caches: dict[tuple[float, int], ActivationCache] = {}
    drawn = torch.Generator().manual_seed(seed)
    losses = []
    for step in bar(range(steps), desc="tuned lens", unit="step"):
        level = noised.levels[step % len(noised.levels)]
        batch = int(torch.randint(len(noised.batches), (), generator=drawn))
        if (level, batch) not in caches:
            caches[level, batch] = noised.cache(level, list(NEEDED), noised.batches[batch])
        cache = caches[level, batch]
        readout = Readout(noised.pipe, cache, noised.target)
        with keep_grad_mode(), torch.enable_grad():
            wanted, tuned = readout.total(), TunedLens(weight=weight, bias=bias, losses=torch.zeros(0))
            made = [readout.normalised(tuned(cache["resid_pre", layer], layer)) for layer in range(cfg.n_layers)]
            loss = torch.stack([(estimate - wanted).square().mean() for estimate in made]).sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])  # and none of the model's parameters
        optimizer.step()
        losses.append(float(loss.detach()))
    return TunedLens(weight=weight.detach(), bias=bias.detach(), losses=torch.tensor(losses))
