"""Where attention goes: from frame to frame, by displacement, by chunk of history, from region to region.

Each takes a `NoisedClips` and asks the pattern of every self-attention of one forward pass a noise level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from vdinterp import plotting
from vdinterp.analysis.heads.statistic import HeadStatistic, head_rows, head_statistic
from vdinterp.analysis.heads.tables import head_names, largest, tidy
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.checks.counts import check_count
from vdinterp.results import Result, Section
from vdinterp.words.wording import caution, number

if TYPE_CHECKING:
    import plotly.graph_objects as go

DUMMY = 0.8  # mass on the current chunk above which a head is called dummy (2601.20499)


# Frame to frame


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameMass(Result):
    """`mass` `[level layer head frame frame]`: mean attention from a frame (row) to a frame (column)."""

    title = "Attention from frame to frame"
    mass: Float[torch.Tensor, "level layer head frame frame"]
    chance: Float[torch.Tensor, "layer frame frame"]
    levels: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a number: `level layer head query_frame key_frame value chance`."""
        frames = range(self.mass.shape[-1])
        chance = self.chance[None, :, None].expand_as(self.mass)
        return tidy(self.mass, level=self.levels, layer=None, head=None, query_frame=frames, key_frame=frames).assign(
            chance=chance.flatten().numpy()
        )

    def plot(self) -> dict[str, go.Figure]:
        """A matrix for every head, layers under one another, at every noise level."""
        _, n_layers, n_heads, n_frames, _ = self.mass.shape
        figures = {}
        for level, values in zip(self.levels, self.mass, strict=True):
            title = f"Attention from frame (down) to frame (across) of every head, noise level {level:g}"
            figures[title] = plotting.tiles(
                values,
                rows=[str(i) for i in range(n_layers)],
                columns=[str(i) for i in range(n_heads)],
                title=title,
                x_title="head",
                y_title="layer",
                value_title="attention mass, 0 to 1",
                zmax=1.0,
                cell_names=("from frame", "to frame"),
                cell_x=range(n_frames),
                cell_y=range(n_frames),
            )
        return figures

    def summary(self) -> str:
        """How much stays in the own frame, head by head at the first noise level."""
        own = self.mass[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        low, high = (divmod(int(index), own.shape[1]) for index in (own.argmin(), own.argmax()))
        chance = float(self.chance.diagonal(dim1=-2, dim2=-1).mean())
        return (
            f"{caution(self.meta)}At noise level {self.levels[0]:g}, heads keep {float(own.min()):.2f} "
            f"({low[0]}.{low[1]}) to {float(own.max()):.2f} ({high[0]}.{high[1]}) of their attention in the own frame; "
            f"uniform attention keeps {chance:.2f}."
        )

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the largest masses between different frames first."""
        caption = "From frame to frame. Mean attention, the largest first. `chance`: of uniform attention"
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: largest(self)})]


@on_noised_clips
def frame_mass(noised: NoisedClips) -> FrameMass:
    """Attention mass from every frame to every frame, of all heads.

    `mass[f, g] = mean over queries of frame f of sum over keys of frame g of A`. Range 0 to 1, rows sum to 1. Chance:
    the share of frame g in what frame f may see (`1 / n_frames` without a mask). It rides along with the ordinary
    forward pass. Misleads: mass says where a head looks, not whether what it fetches matters; a head whose values are
    the same everywhere can look anywhere.
    """
    levels = []
    for level in noised.levels:
        stacked = [cache.stack("frame_mass") for cache in noised.caches(level, ["frame_mass"])]
        levels.append(torch.cat(stacked, 1).mean(1).cpu())
    layers = range(noised.model.cfg.n_layers)
    chance = torch.stack([noised.uniform_pattern(layer).frame_mass()[0, 0] for layer in layers]).cpu()
    return FrameMass(mass=torch.stack(levels), chance=chance, levels=noised.levels, meta=noised.meta())


# Chunks of history


@on_noised_clips
def chunk_mass(noised: NoisedClips, n_first: int = 1, n_current: int = 1) -> HeadStatistic:
    """How much the target frames attend to the first frames, to those between, and to themselves.

    Score `current`: mean mass of a target frame's queries on the `n_current` frames that end with it; `first`: on the
    first `n_first` frames; `middle`: on the frames between; `dummy`: 1 where `current` is above 0.8 (the share of clips
    in which it is). Range 0 to 1; first, middle and current sum to 1 where no frame comes after the target. Chance: the
    share of the frames. Misleads: a dummy head is not useless, it works within its frame; and at low noise a frame
    needs no history, so heads look dummy that are not.
    Source: Dummy Forcing (arXiv 2601.20499), where a chunk is what is generated at once, and dummy heads are those
    with most of their attention on it.

    Raises ValueError if the chunks overlap in some target frame.
    """
    first_target = noised.target[0]
    check_count("n_first", n_first)
    check_count("n_current", n_current)
    if first_target - n_current + 1 < n_first:
        raise ValueError(
            f"the first {n_first} and the current {n_current} frames overlap for target frame {first_target}: use "
            "fewer, or more clean frames (n_context)"
        )
    units = {
        "first": f"mass on the first {n_first}, 0 to 1",
        "middle": "mass on the frames between, 0 to 1",
        "current": f"mass on the current {n_current}, 0 to 1",
        "dummy": f"share of clips with current mass over {DUMMY:g}",
    }
    rows = []
    uniform = torch.stack([noised.uniform_pattern(i).frame_mass()[0] for i in range(noised.model.cfg.n_layers)]).cpu()
    chance = _chunks(uniform[None], noised, n_first, n_current)
    for level in noised.levels:
        stacked = [cache.stack("frame_mass").transpose(0, 1) for cache in noised.caches(level, ["frame_mass"])]
        found = _chunks(torch.cat(stacked).cpu(), noised, n_first, n_current)  # clip layer head
        for score, values in found.items():
            rows.append(head_rows(values, level=level, score=score, chance=chance[score][0, :, 0]))
        dummy = (found["current"] > DUMMY).float()
        rows.append(head_rows(dummy, level=level, score="dummy"))
    return head_statistic("Attention to the first, middle and current frames", rows, units, noised.meta())


def _chunks(
    mass: Float[torch.Tensor, "clip layer head frame frame"], noised: NoisedClips, n_first: int, n_current: int
) -> dict[str, torch.Tensor]:
    """Mean over target frames of their mass on each chunk, `[clip layer head]`."""
    first, middle, current = [], [], []
    for frame in noised.target:
        row = mass[:, :, :, frame]
        start = frame - n_current + 1
        first.append(row[..., :n_first].sum(-1))
        middle.append(row[..., n_first:start].sum(-1))
        current.append(row[..., start : frame + 1].sum(-1))
    chunks = {"first": first, "middle": middle, "current": current}
    return {name: torch.stack(parts).mean(0) for name, parts in chunks.items()}


# Displacement


@dataclass(frozen=True, kw_only=True, eq=False)
class DisplacementKernels(Result):
    """`kernel` `[group level layer head frame row col]`: mean attention by displacement, 0 in the middle."""

    title = "Attention by displacement"
    kernel: Float[torch.Tensor, "group level layer head frame row col"]
    groups: tuple[str, ...]
    chance: Float[torch.Tensor, "layer frame row col"]
    levels: tuple[float, ...]

    @property
    def reach(self) -> tuple[int, int, int]:
        """The largest displacement along each axis."""
        frames, rows, cols = (size // 2 for size in self.kernel.shape[4:])
        return frames, rows, cols

    def at(self, frame: int, row: int, col: int) -> Float[torch.Tensor, "group level layer head"]:
        """The kernel at one displacement."""
        for given, reach in zip((frame, row, col), self.reach, strict=True):
            if abs(given) > reach:
                raise ValueError(f"displacement {(frame, row, col)} lies outside the kernel's reach {self.reach}")
        frames, rows, cols = self.reach
        return self.kernel[..., frames + frame, rows + row, cols + col]

    def to_frame(self) -> pd.DataFrame:
        """One row a number: `group level layer head frame row col value chance`."""
        steps = {
            axis: range(-reach, reach + 1) for axis, reach in zip(("frame", "row", "col"), self.reach, strict=True)
        }
        chance = self.chance[None, None, :, None].expand_as(self.kernel)
        return tidy(self.kernel, group=self.groups, level=self.levels, layer=None, head=None, **steps).assign(
            chance=chance.flatten().numpy()
        )

    def plot(self, frame: int | None = None) -> dict[str, go.Figure]:
        """At every noise level, a tile for every group (down) and head (across); layer x head if there is one group.

        `frame`: the displacement in time that is shown; default -1, one frame back, or 0 where that is not known.
        """
        if frame is None:
            frame = -1 if self.reach[0] else 0
        if abs(frame) > self.reach[0]:
            raise ValueError(f"frame={frame} lies outside the kernel's reach {self.reach}")
        n_layers, n_heads = self.kernel.shape[2:4]
        shown = self.kernel[:, :, :, :, self.reach[0] + frame]
        far = f"{abs(frame)} frame{'s' * (abs(frame) > 1)}"
        when = "same frame" if not frame else f"{far} back" if frame < 0 else f"{far} on"
        rows = [str(d) for d in range(-self.reach[1], self.reach[1] + 1)]
        cols = [str(d) for d in range(-self.reach[2], self.reach[2] + 1)]
        figures = {}
        for index, level in enumerate(self.levels):
            single = len(self.groups) == 1
            title = f"Mean attention by displacement (down, across), {when}, noise level {level:g}"
            figures[title] = plotting.tiles(
                shown[0, index] if single else shown[:, index].flatten(1, 2),
                rows=[str(i) for i in range(n_layers)] if single else self.groups,
                columns=[str(i) for i in range(n_heads)] if single else head_names(n_layers, n_heads),
                title=title,
                x_title="head",
                y_title="layer" if single else "clips",
                value_title="mean attention, 0 to 1",
                cell_names=("rows down", "columns right"),
                cell_x=cols,
                cell_y=rows,
            )
        return figures

    def summary(self) -> str:
        """The sharpest kernels at the first noise level."""
        flat = self.kernel[:, 0].flatten(3)
        lines = []
        for group, name in enumerate(self.groups):
            best = int(flat[group].flatten().argmax())
            layer, head, place = np.unravel_index(best, tuple(flat.shape[1:]))
            dt, dy, dx = np.unravel_index(int(place), tuple(self.kernel.shape[4:]))
            moved = tuple(int(d) - r for d, r in zip((dt, dy, dx), self.reach, strict=True))
            value, chance = float(flat[group, layer, head, place]), float(self.chance[layer].flatten()[place])
            lines.append(
                f"- **{name}**: head {layer}.{head} looks at {moved} (frames, rows, columns) with {value:.2f} of its "
                f"attention; uniform attention has {number(chance)} there."
            )
        return caution(self.meta) + "\n".join(lines)

    def sections(self) -> list[Section]:
        """Summary, figures and the table, the largest values first."""
        caption = (
            "By displacement. Mean attention from query to key (frames, rows down, columns right), the largest first. "
            "`chance`: of uniform attention"
        )
        return [Section(title=self.title, text=self.summary(), figures=self.plot(), tables={caption: largest(self)})]


@on_noised_clips
def displacement_kernel(
    noised: NoisedClips,
    groups: Mapping[str, Bool[torch.Tensor, " clip"]] | None = None,
    frames: Sequence[int] | None = None,
    radius: tuple[int, int, int] | None = None,
) -> DisplacementKernels:
    """Mean attention by displacement `(frame, row, col)`, key minus query, of all heads; by group of clips.

    `K[d] = mean over queries q for which q + d is in the clip of A[q, q + d]`. Range 0 to 1. Chance: the kernel of
    uniform attention, one over the number of keys where there is no mask. `groups`: names of sets of clips, for example
    by action (they may overlap; an empty one raises); `frames`: whose queries count (default: the noised ones);
    `radius` (frames, rows, cols) limits the displacements. Misleads at the rim, where few queries have the key; and an
    average over clips that do different things shows all of them at once.
    """
    everything = {"all clips": torch.ones(len(noised.clips), dtype=torch.bool)}
    groups = everything if groups is None else {name: torch.as_tensor(chosen) for name, chosen in groups.items()}
    for name, chosen in groups.items():
        if chosen.shape != (len(noised.clips),) or chosen.dtype != torch.bool or not chosen.any():
            raise ValueError(
                f"group {name!r} must be a boolean [clip] = [{len(noised.clips)}] with at least one clip, got "
                f"{chosen.dtype} {list(chosen.shape)}, {int(chosen.sum())} clips"
            )
    frames = noised.target if frames is None else frames
    # Bad frames and radii are found out here, before the model runs.
    uniform = [noised.uniform_pattern(layer) for layer in range(noised.model.cfg.n_layers)]
    chance = torch.stack([pattern.displacement_kernel(radius, frames)[0, 0] for pattern in uniform]).cpu()
    found = []
    for level in noised.levels:
        parts = [
            torch.stack([pattern.displacement_kernel(radius, frames) for pattern in layers], 1).cpu()
            for layers in noised.patterns(level)
        ]
        kernels = torch.cat(parts)  # clip layer head frame row col
        found.append(torch.stack([kernels[chosen].mean(0) for chosen in groups.values()]))
    return DisplacementKernels(
        kernel=torch.stack(found, 1),
        groups=tuple(groups),
        levels=noised.levels,
        chance=chance,
        meta=noised.meta(query_frames=list(frames)),
    )


# Regions


@dataclass(frozen=True, kw_only=True, eq=False)
class Synopsis(Result):
    """`mass` `[level layer head region region]`: mean attention from region (row) to region (column)."""

    title = "Attention from region to region"
    mass: Float[torch.Tensor, "level layer head region region"]
    chance: Float[torch.Tensor, "layer region region"]
    regions: tuple[str, ...]
    levels: tuple[float, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a number: `level layer head from to value chance`."""
        chance = self.chance[None, :, None].expand_as(self.mass)
        places = {"from": self.regions, "to": self.regions}
        return tidy(self.mass, level=self.levels, layer=None, head=None, **places).assign(
            chance=chance.flatten().numpy()
        )

    def plot(self) -> dict[str, go.Figure]:
        """A matrix for every head at every noise level: attention beyond that of uniform attention."""
        n_layers, n_heads = self.mass.shape[1:3]
        figures = {}
        for level, values in zip(self.levels, self.mass, strict=True):
            title = f"Attention from region (down) to region (across) beyond uniform attention, noise level {level:g}"
            figures[title] = plotting.tiles(
                values - self.chance[:, None],
                rows=[str(i) for i in range(n_layers)],
                columns=[str(i) for i in range(n_heads)],
                title=title,
                x_title="head",
                y_title="layer",
                value_title="mass beyond chance, -1 to 1",
                diverging=True,
                cell_names=("from", "to"),
                cell_x=self.regions,
                cell_y=self.regions,
            )
        return figures


@on_noised_clips
def synopsis(noised: NoisedClips, regions: Int[torch.Tensor, "clip frame row col"], names: Sequence[str]) -> Synopsis:
    """Attention between regions of the picture: a small matrix that says for every head who looks at what.

    `S[r, s] = mean over queries in region r of the mass on keys in region s`, over all clips. Range 0 to 1, rows sum to
    1. Chance: the share of region s among the keys. `regions`: a label 0 .. len(names) - 1 for every token (for example
    from a segmentation, or a game's semantic map). Misleads: large regions get more by their size alone, so read it
    against chance. Source: attention synopsis (arXiv 2601.06338).

    Raises ValueError for labels of another shape, or a region that occurs nowhere.
    """
    shape = (len(noised.clips), *noised.grid.shape)
    if regions.shape != shape or regions.is_floating_point():
        given = f"{regions.dtype} {list(regions.shape)}"
        raise ValueError(f"regions must be integers {list(shape)} (clip frame row col), got {given}")
    labels = regions.flatten(1).long()
    missing = [name for index, name in enumerate(names) if not (labels == index).any()]
    if missing or int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise ValueError(f"labels must be 0..{len(names) - 1}, each somewhere; nowhere: {', '.join(missing) or 'none'}")
    columns = torch.nn.functional.one_hot(labels, len(names)).float()  # clip pos region
    count = columns.sum((0, 1))
    found = []
    for level in noised.levels:
        total = torch.zeros(noised.model.cfg.n_layers, noised.model.cfg.n_heads, len(names), len(names))
        for clips, layers in zip(noised.batches, noised.patterns(level), strict=True):
            for layer, pattern in enumerate(layers):
                total[layer] += _region_sums(pattern, columns[clips]).cpu()
        found.append(total / count[:, None])
    everyone = [noised.uniform_pattern(layer) for layer in range(noised.model.cfg.n_layers)]
    chance = torch.stack(
        [sum(_region_sums(pattern, one[None])[0].cpu() for one in columns) / count[:, None] for pattern in everyone]
    )
    return Synopsis(
        mass=torch.stack(found), chance=chance, regions=tuple(names), levels=noised.levels, meta=noised.meta()
    )


def _region_sums(pattern, columns: Float[torch.Tensor, "clip pos region"]) -> Float[torch.Tensor, "head region region"]:
    """Sum over clips and queries of each region (rows) of the mass on each region (columns)."""
    mass = pattern.weighted(columns.to(pattern.q.device))
    return torch.einsum("bqr,bhqs->hrs", columns.to(mass), mass)
