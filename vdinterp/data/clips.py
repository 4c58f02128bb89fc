"""Clips: short videos with their ground truth, and `make_clips`, which makes any kind of them."""

from __future__ import annotations

import difflib
import functools
import html
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vdinterp.checks.counts import check_count, check_seed
from vdinterp.conditions import Conditions

DIGIT_KINDS = ("loop", "snippet", "one_off", "control")
OBJECT_KINDS = ("bounce", "occlusion")
KINDS = (*DIGIT_KINDS, *OBJECT_KINDS, "crafter")
log = logging.getLogger("vdinterp")


OWN = ("kind", "labels", "corrupt", "meta")  # fields that hold no tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Clips:
    """A batch of clips of one kind: a video, or the latents of one, and whatever is known of it, by name.

    >>> clips = Clips(kind="mine", video=video, labels={"speed": speed})  # speed [batch frame]
    """

    kind: str
    video: Float[torch.Tensor, "batch frame channel height width"] | None = None
    """Values in [0, 1]."""
    encoded: Float[torch.Tensor, "batch frame _ _ _"] | None = None
    """Latents: what one model's `pipe.encode` makes of the video, normalised; with it the video may be missing, and
    what needs pixels then decodes or says so."""
    labels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What is known, by name: `[batch]`, `[batch frame]`, `[batch frame row col]` (rows and columns of tokens) or
    `[batch frame k]`; whole numbers are classes, negative ones unknown, other numbers are values. Frames are those of
    the video, or latent frames. The kinds of `make_clips` have names of their own: see `LABELS` in
    `vdinterp.data.digits`, `objects` and `crafter`; `predictable` (whether a frame follows from the ones before it) is
    what studies go by, whosever it is."""
    action: Float[torch.Tensor, "batch frame _"] | None = None
    """What led to each frame, as the model takes it."""
    text: Float[torch.Tensor, "batch key _"] | None = None
    """Token embeddings, as the model takes them."""
    text_mask: Bool[torch.Tensor, "batch key"] | None = None
    """Which text tokens there are; None: all."""
    corrupt: Clips | None = None
    """The same clips with exactly one frame changed, and the labels that then hold."""
    corrupt_frame: Int[torch.Tensor, " batch"] | None = None
    """Which frame of each that is."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Where the clips are from, as far as somebody said so (of a file: its name, frames a second, starts)."""

    def __post_init__(self) -> None:
        if self.video is None and self.encoded is None:
            raise ValueError("clips need a video [batch frame channel height width] in [0, 1], or encoded= latents")
        for name in ("video", "encoded"):
            value = getattr(self, name)
            if isinstance(value, torch.Tensor) and value.ndim != 5:
                raise ValueError(f"{name} must be [batch frame channel height width], got shape {tuple(value.shape)}")
        if not isinstance(self.labels, Mapping):
            raise ValueError(f"labels are {type(self.labels).__name__}; give a dictionary of tensors by name")
        parts = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in OWN}
        for name, value in (parts | dict(self.labels)).items():
            if not isinstance(value, torch.Tensor) and (value is not None or name in self.labels):
                raise ValueError(f"{name} is a {type(value).__name__}; a tensor with one entry a clip is wanted")
        for name, value in (parts | {"corrupt": self.corrupt} | dict(self.labels)).items():
            if value is not None and len(value) != len(self):
                raise ValueError(f"{name} describes {len(value)} clips, {self._shown} has {len(self)}")

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__.get("labels", ()):
            raise AttributeError(f"{name} is a label of these clips: clips.labels[{name!r}]")
        raise AttributeError(f"clips have no attribute {name!r}")

    def __repr__(self) -> str:
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        shown = [f"{name} {list(values[name].shape)}" for name in ("video", "encoded") if values[name] is not None]
        truth = [k for k, v in values.items() if isinstance(v, torch.Tensor) and k not in ("video", "encoded")]
        truth += sorted(self.labels)
        twin = "" if self.corrupt is None else ", with corrupt twins"
        return f"Clips({self.kind!r}, {', '.join(shown)}, {', '.join(truth) or 'no ground truth'}{twin})"

    def _repr_html_(self) -> str:
        """The first clips, playing, above their twins if they have any."""
        from vdinterp.plotting.playing import playing_html

        if self.video is None:
            return f"<p>{html.escape(repr(self))}</p>"
        twins = {} if self.corrupt is None or self.corrupt.video is None else {"corrupt": self.corrupt.video}
        return playing_html({"": self.video, **twins}, repr(self))

    def __len__(self) -> int:
        return len(getattr(self, self._shown))

    def __getitem__(self, index: int | np.integer | slice | Sequence[int] | np.ndarray | torch.Tensor) -> Clips:
        """Some of the clips, as `Clips`: one (a batch of one), a slice, their numbers, or a boolean mask `[batch]`.

        Raises ValueError for what is none of these, IndexError for clips that there are not.
        """
        index = self._chosen(index)
        return self._each(lambda part: part[index])

    def _chosen(self, index: Any) -> slice | Int[torch.Tensor, " clip"]:
        """What `clips[index]` means."""
        if isinstance(index, slice):
            return index
        if index is None or isinstance(index, str | bytes):
            raise ValueError(f"clips[{index!r}]: give numbers of clips, a slice, or a boolean mask [batch]")
        numbers = torch.as_tensor([index] if isinstance(index, Integral) and not isinstance(index, bool) else index)
        if numbers.dtype == torch.bool and numbers.ndim == 1:
            if len(numbers) != len(self):
                raise ValueError(f"a mask of clips has one entry for each of {len(self)}, not {len(numbers)}")
            return numbers.nonzero()[:, 0]
        if numbers.numel() and (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool):
            raise ValueError(f"clips[{index!r:.80}]: give numbers of clips, a slice, or a boolean mask [batch]")
        if numbers.ndim != 1:
            raise ValueError(f"clips[..] takes a list of clips, not {list(numbers.shape)}")
        for outside in numbers[(numbers < -len(self)) | (numbers >= len(self))].tolist():
            raise IndexError(f"clip {outside} of {len(self)}")
        return numbers.long()

    @property
    def n_frames(self) -> int:
        return getattr(self, self._shown).shape[1]

    @property
    def pixels(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """The video. ValueError for clips that are latents alone."""
        if self.video is None:
            raise ValueError(
                f"these {self.kind!r} clips are latents without pixels; give clips with a video, or a pipeline whose "
                "VAE decodes them"
            )
        return self.video

    @property
    def latents(self) -> Float[torch.Tensor, "batch frame channel height width"]:
        """The encoded clips; without them what a pixel-space model takes: `video * 2 - 1`. ValueError for kinds made
        for latent models."""
        if self.encoded is not None:
            return self.encoded
        if self.kind == "crafter":
            raise ValueError("crafter clips are for a model with a codec: use pipe.encode(clips.video)")
        return self.pixels * 2 - 1

    def to(self, device: torch.device | str) -> Clips:
        """The same clips with every tensor on `device`."""
        return self._each(lambda part: part.to(device))

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, which `Clips.load` and the command line's `--clips` read."""
        from vdinterp.data.clip_files import save_clips

        return save_clips(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Clips:
        """Read a file that `save` wrote, or one of your own: safetensors with `video` `[batch frame channel height
        width]` (float in [0, 1], or 8-bit) or `latents` (normalised), and whatever else is known: `action`
        `[batch frame d_action]`, `text`, `labels.NAME`.

        Raises FileNotFoundError where there is no file, ValueError for one that holds something else.
        """
        from vdinterp.data.clip_files import load_clips

        return load_clips(path)

    @property
    def conditions(self) -> Conditions:
        """What steers a run on these clips besides noise, as far as it is known."""
        return Conditions(actions=self.action, text=self.text, text_mask=self.text_mask)

    @property
    def _shown(self) -> str:
        """Which of the two fields that hold frames there is for sure."""
        return "encoded" if self.video is None else "video"

    def _each(self, change: Callable[[Any], Any]) -> Clips:
        """The clips with every tensor changed alike, those of the twin and the labels too."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        changed = {k: change(v) for k, v in values.items() if isinstance(v, torch.Tensor | Clips)}
        return replace(self, **changed, labels={name: change(value) for name, value in self.labels.items()})


@functools.cache
def say_cut(n_frames: int, kept: int, model_name: str) -> None:
    """Log, once, that clips are longer than what a model sees, if they are."""
    if n_frames > kept:
        log.warning("clips have %d frames, %s sees %d: only the first %d are used", n_frames, model_name, kept, kept)


def make_clips(kind: str, n: int, seed: int = 0, **options: object) -> Clips:
    """`n` clips of a kind, with ground truth and a twin that differs in one frame (`.corrupt`).

    Clip `i` depends on `(seed, i)` and the options, never on `n`.

    - `loop`, `snippet`, `one_off`, `control`: handwritten digits as frames, 8 x 8, one channel; options as in
      `vdinterp.data.digits.make_digit_clips` (n_frames, split, period, lag, filler).
    - `bounce`, `occlusion`: moving discs, three channels; options as in `vdinterp.data.objects.make_object_clips`.
    - `crafter`: the game Crafter (needs the extra `crafter`); options as in `vdinterp.data.crafter.make_crafter_clips`.

    Raises ValueError for an unknown kind, a negative seed, n below 1 or an option the kind does not have.
    """
    if kind not in KINDS:
        close = difflib.get_close_matches(str(kind), KINDS, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(f"unknown kind of clips {kind!r}{hint} Known kinds: {', '.join(KINDS)}")
    n, seed = check_count("n", n), check_seed(seed)
    if kind in DIGIT_KINDS:
        from vdinterp.data.digits import make_digit_clips as make
    elif kind in OBJECT_KINDS:
        from vdinterp.data.objects import make_object_clips as make
    else:
        from vdinterp.data.crafter import make_crafter_clips

        _check_options(kind, make_crafter_clips, options)
        return make_crafter_clips(n, seed, **options)  # type: ignore[arg-type]
    _check_options(kind, make, options)
    return make(kind, n, seed, **options)  # type: ignore[arg-type]


def _check_options(kind: str, make: Callable[..., Clips], options: Mapping[str, object]) -> None:
    """Raise `ValueError` for an option that a kind of clips does not have."""
    known = [name for name in inspect.signature(make).parameters if name not in ("kind", "n", "seed")]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{kind!r} clips have no option {unknown[0]!r}; they have {', '.join(known)}")
