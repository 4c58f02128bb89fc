"""Correspondence: do heads look at where the same thing was in another frame?"""

from __future__ import annotations

import torch
from jaxtyping import Int

from vdinterp.analysis.heads.statistic import HeadStatistic, head_rows, head_statistic
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.data.tracks import cell_tracks
from vdinterp.models import AttentionPattern

UNITS = {
    "accuracy": "share of matches that are right, 0 to 1",
    "confidence": "share of a frame's mass on the match, 0 to 1",
    "cross-frame mass": "attention mass on other frames, 0 to 1",
    "harmonic mean": "harmonic mean of the three, 0 to 1",
}


@on_noised_clips
def correspondence(
    noised: NoisedClips, tracks: Int[torch.Tensor, "clip point frame"] | None = None, frame: int = -1
) -> HeadStatistic:
    """Per head, how well attention from one frame finds the same thing in the other frames.

    For a point seen in `frame` (default the last) and in another frame g, the match is the key of frame g that the
    point's token attends to most. `accuracy`: share of points and frames whose match is the true cell. `confidence`:
    the match's share of the mass on frame g. `cross-frame mass`: what the token gives to other frames, at all.
    `harmonic mean` of the three: high only where all are. Range 0 to 1. Chance: accuracy and confidence one over the
    cells of a frame; mass as in uniform attention. Misleads: on a still background a head that always looks at its own
    place is right by position, not by content; so measure on clips that move.
    `tracks`: the cell of every point in each frame, -1 where it is not seen (default: `data.tracks.cell_tracks`).
    Source: DiffTrack (arXiv 2506.17220), which starts from the first frame of a generated clip and tracks made by
    another model; here from a noised frame, with the true tracks. There a match may be off by some pixels; here a token
    is right or wrong.

    Frames that a causal mask hides are left out. Raises ValueError for attention that sees its own frame only, and for
    tracks that do not fit.
    """
    grid = noised.grid
    if not -noised.n_frames <= frame < noised.n_frames:
        raise ValueError(f"frame={frame}: the clips have {noised.n_frames} frames")
    start = range(noised.n_frames)[frame]
    tracks = cell_tracks(noised.framed, grid, frame) if tracks is None else tracks
    if tracks.ndim != 3 or (len(tracks), tracks.shape[2]) != (len(noised.clips), noised.n_frames):
        wanted = [len(noised.clips), "point", noised.n_frames]
        raise ValueError(f"tracks must be {wanted} (clip point frame), got {list(tracks.shape)}")
    if int(tracks.max()) >= grid.tokens_per_frame or int(tracks.min()) < -1:
        held = f"{int(tracks.min())}..{int(tracks.max())}"
        raise ValueError(f"tracks hold cells {held}; a frame has 0..{grid.tokens_per_frame - 1}, and -1 is not seen")
    layers = [i for i in range(noised.model.cfg.n_layers) if noised.model.sublayer(i).axis != "space"]
    if len(layers) < noised.model.cfg.n_layers:
        raise ValueError(f"only the layers {layers} see other frames: correspondence needs attention across frames")
    visible = torch.stack([noised.uniform_pattern(layer).frame_mass()[0, 0, start].cpu() for layer in layers])
    hidden = (visible == 0).any(0)  # by a causal mask: nothing can be matched there
    if hidden.sum() >= noised.n_frames - 1:
        raise ValueError(f"frame {start} sees no other frame: choose a later one")
    tracks = torch.where(hidden, -1, tracks)
    rows = []
    cell = torch.full((len(layers),), 1 / grid.tokens_per_frame)
    away = 1 - visible[:, start]
    for level in noised.levels:
        found: dict[str, list[torch.Tensor]] = {score: [] for score in UNITS}
        for clips, patterns in zip(noised.batches, noised.patterns(level), strict=True):
            parts = [_scores(pattern, tracks[clips], start) for pattern in patterns]
            for score in UNITS:
                found[score].append(torch.stack([part[score] for part in parts], 1))
        chance = {"accuracy": cell, "confidence": cell, "cross-frame mass": away}
        chance["harmonic mean"] = 3 / (2 / cell + 1 / away)
        for score, values in found.items():
            rows.append(head_rows(torch.cat(values), level=level, score=score, chance=chance[score]))
    return head_statistic("Correspondence", rows, UNITS, noised.meta(query_frame=start))


def _scores(
    pattern: AttentionPattern, tracks: Int[torch.Tensor, "clip point frame"], start: int
) -> dict[str, torch.Tensor]:
    """Every score, `[clip head]`, mean over points and frames; NaN for a clip without any."""
    per_frame = pattern.grid.tokens_per_frame
    rows = pattern.rows(torch.arange(per_frame) + start * per_frame).cpu().unflatten(-1, (-1, per_frame))
    at = tracks[:, :, start].clamp(min=0)
    rows = rows.gather(2, at[:, None, :, None, None].expand(-1, rows.shape[1], -1, *rows.shape[3:]))
    seen = (tracks >= 0) & (tracks[:, :, start, None] >= 0)  # clip point frame
    seen[:, :, start] = False
    match = rows.max(-1)  # clip head point frame
    mass = rows.sum(-1)
    right = match.indices == tracks[:, None]
    count = seen.sum((1, 2))[:, None].float()

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * seen[:, None]).sum((2, 3)) / count

    away = 1 - mass[..., start]  # clip head point
    points = seen.any(-1)[:, None]
    scores = {
        "accuracy": mean(right.float()),
        "confidence": mean(match.values / mass.clamp(min=1e-12)),
        "cross-frame mass": (away * points).sum(-1) / points.sum(-1),
    }
    inverse = sum(1 / value.clamp(min=1e-9) for value in scores.values())
    scores["harmonic mean"] = 3 / inverse  # type: ignore[operator]
    return scores
