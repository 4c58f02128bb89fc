"""Which clips a study looks at, and which of their frames it can judge."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool

from vdinterp.analysis.stimulus.latent_clips import LatentClips
from vdinterp.data import KINDS, Clips, crafter, make_clips, sample_clips
from vdinterp.data.clips import DIGIT_KINDS
from vdinterp.pipeline import VideoDiffusion

Part = Literal["evaluation", "reference"]


def kind_of(pipe: VideoDiffusion) -> str | None:
    """The kind of clips (as of `make_clips`) that a model was made for, None if it does not say."""
    return pipe.clip_kind if pipe.clip_kind in KINDS else None


def held_out_clips(
    pipe: VideoDiffusion, n: int, seed: int = 0, *, part: Part = "evaluation", n_context: int | None = None
) -> Clips:
    """`n` clips of the model's own kind that it was not trained on, `model.cfg.n_frames` long.

    `part` "evaluation" and "reference" share no clip: crafter's sample clips are split in halves, at random by seed;
    the other kinds take different seeds. Of kinds with unpredictable frames only those clips are taken whose first two
    target frames (one, if there is no second) follow from the first `n_context` frames, else there would be nothing to
    judge.

    Raises ValueError when the model does not say what its clips are.
    """
    kind, n_frames = kind_of(pipe), pipe.model.cfg.n_frames
    n_video = pipe.frame_map.n_video(n_frames)
    if kind is None:
        raise ValueError(
            f"{pipe.model.cfg.model_name} does not say what clips it was made for: pass clips=vd.data.make_clips(...) "
            "or clips=vd.data.read_clips(file, ...), or set pipe.meta['clips'] to a kind of clips"
        )
    if n < 1 or seed < 0:
        raise ValueError(f"need n >= 1 clips and seed >= 0, got n={n}, seed={seed}")
    if kind == "crafter":
        return _crafter(n, seed, n_video, part)
    seed = 2 * seed + (part == "reference")
    if n_context is None:
        n_context = default_context(n_frames, predictable=True)
    wanted = slice(0, min(2, n_frames - n_context))
    drawn = n
    while True:
        clips = make_clips(kind, drawn, seed, n_frames=n_video)
        seen = clips if n_video == n_frames else LatentClips(pipe, clips)
        follow = judged(seen, n_context)[:, wanted].all(1).nonzero()[:, 0]
        if len(follow) >= n:
            return without_twin(clips)[follow[:n]]
        if drawn > 64 * n:
            raise ValueError(f"of {drawn} {kind!r} clips only {len(follow)} can be continued from {n_context} frames")
        drawn *= 4


def pairs_of(pipe: VideoDiffusion, n: int, seed: int = 0, clips: Clips | None = None) -> tuple[Clips, Clips]:
    """`n` clean clips and their corrupted twins, of the model's own kind, to patch between.

    Digits: the last frame repeats an earlier one, which the twin replaces by another image. Crafter: the last step
    moved, and the twin is told the opposite move. Other kinds: the twins of `make_clips`.

    `clips` of yours, the first `n`: with their own twins; else, where the model takes actions and the clips have them,
    the same frames under the next clip's actions; else the next clip (after the last the first).

    Raises ValueError when the model does not say what its clips are, or there are not enough.
    """
    if clips is not None:
        return _pairs_among(clips[:n], bool(pipe.model.cfg.d_action))
    kind, n_frames = kind_of(pipe), pipe.frame_map.n_video(pipe.model.cfg.n_frames)
    if kind is None:
        raise ValueError(
            f"{pipe.model.cfg.model_name} does not say what clips it was made for: give clean and corrupted clips "
            "yourself (vd.activation_patch), or set pipe.meta['clips'] to a kind of clips"
        )
    if n < 1 or seed < 0:
        raise ValueError(f"need n >= 1 pairs and seed >= 0, got n={n}, seed={seed}")
    if kind == "crafter":
        return _opposite_moves(n, seed, n_frames)
    clips = make_clips("one_off" if kind in DIGIT_KINDS else kind, n, seed, n_frames=n_frames)
    assert clips.corrupt is not None
    return without_twin(clips), clips.corrupt


def _pairs_among(clips: Clips, with_actions: bool) -> tuple[Clips, Clips]:
    """Each clip and its twin, or its frames under the next clip's actions, or the next clip."""
    clean = without_twin(clips)
    if clips.corrupt is not None:
        return clean, clips.corrupt
    if len(clips) < 2:
        raise ValueError("one clip without a corrupted twin makes no pair; give at least two, or Clips(corrupt=...)")
    following = clean[torch.arange(len(clips)).roll(-1)]
    if with_actions and clips.action is not None:
        told = replace(clean, action=following.action)
        differs = (clips.action != following.action).flatten(1).any(1).nonzero()[:, 0]
        if len(differs):
            return clean[differs], told[differs]
    return clean, following


def _opposite_moves(n: int, seed: int, n_frames: int) -> tuple[Clips, Clips]:
    """Recorded play whose last step moved, and the same frames with the opposite move as the last action."""
    everything = sample_clips("crafter", n_frames=n_frames)
    last = crafter.moved(everything)[:, -1].nonzero()[:, 0]
    if n > len(last):
        raise ValueError(f"the package holds {len(last)} crafter clips whose last step moved, {n} were asked for")
    clean = everything[last[torch.from_numpy(np.random.default_rng(seed).permutation(len(last))[:n])]]
    assert clean.action is not None
    action = clean.action.clone()
    opposite = {
        move: other
        for move, step in crafter.MOVES.items()
        for other, back in crafter.MOVES.items()
        if (back[0], back[1]) == (-step[0], -step[1])
    }
    moves = action[:, -1].argmax(-1).tolist()
    action[:, -1] = torch.eye(action.shape[-1])[[opposite[move] for move in moves]]
    return clean, replace(clean, action=action)


def _crafter(n: int, seed: int, n_frames: int, part: Part) -> Clips:
    """Of the recorded play that ships with the package, one half for each part."""
    everything = sample_clips("crafter", n_frames=n_frames)
    order = np.random.default_rng(seed).permutation(len(everything))
    mine = order[int(part == "reference") :: 2]
    if n > len(mine):
        raise ValueError(f"the package holds {len(mine)} crafter clips for {part}, {n} were asked for; pass clips=...")
    return everything[mine[:n].tolist()]


def default_context(n_frames: int, predictable: bool) -> int:
    """How many frames are given: half; all but the last of clips that say which frames follow from those before."""
    return max(1, n_frames - 1 if predictable else n_frames // 2)


def judged(clips: Clips | LatentClips, n_context: int) -> Bool[torch.Tensor, "batch frame"]:
    """Which target frames follow from the context: all, unless the clips say which frames are predictable.

    A frame that is predictable from the one before it is so from the context only if that one is, too; the chain ends
    at the first frame that comes as a surprise. A latent frame is predictable if all its video frames are.
    """
    given = clips if isinstance(clips, Clips) else clips.clips
    follows = given.labels.get("predictable", torch.ones(len(given), given.n_frames, dtype=torch.bool))
    if isinstance(clips, LatentClips):
        follows = ~clips.by_frame(~follows, "any")
    return follows[:, n_context:].long().cumprod(1).bool()


def without_twin(clips: Clips) -> Clips:
    """The clips without their corrupted twins."""
    return replace(clips, corrupt=None, corrupt_frame=None)
