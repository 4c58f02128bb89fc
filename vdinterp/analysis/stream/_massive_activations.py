"""Massive activations: a few channels of the stream that are far larger than the rest, and what depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch

from vdinterp import plotting
from vdinterp.analysis.stimulus.cases import changes
from vdinterp.analysis.stimulus.noised_clips import NoisedClips, on_noised_clips
from vdinterp.interventions import Ablate
from vdinterp.results import Result
from vdinterp.words.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

MASSIVE = (100.0, 1000.0)  # size, and size over the median, above which an activation is called massive (2402.17762)


@dataclass(frozen=True, kw_only=True, eq=False)
class MassiveActivations(Result):
    """The largest activations of the stream after every block.

    `table`, one row a layer and noise level: `level layer ratio largest massive channels token frame row col x0_change
    control_change`; `massive` is the share of clips that have an activation of that name. `channels`, one row a top
    channel: `level layer rank channel mean largest`.
    """

    title = "Massive activations"
    table: pd.DataFrame
    channels: pd.DataFrame

    def plot(self) -> dict[str, go.Figure]:
        """By layer: how far the largest value stands out; and what zeroing the top channels does, beside others."""
        table = self.table.assign(level=[f"noise level {level:g}" for level in self.table["level"]])
        title = "Largest activation of the stream over the median one, by layer"
        figures = {
            title: plotting.bars(
                table,
                x="layer",
                y="ratio",
                color="level",
                title=title,
                log=True,
                x_title="layer",
                y_title="largest over median size",
                reference={"massive from here on": MASSIVE[1]},
            )
        }
        for level in self.table["level"].unique():
            rows = self.table[self.table["level"] == level].melt(
                id_vars="layer", value_vars=["x0_change", "control_change"], var_name="channels", value_name="change"
            )
            rows["channels"] = rows["channels"].map({"x0_change": "top channels", "control_change": "random others"})
            title = f"Change of x0 when channels of the stream are zeroed after a layer, noise level {level:g}"
            figures[title] = plotting.bars(
                rows,
                x="layer",
                y="change",
                color="channels",
                title=title,
                x_title="layer",
                y_title="x0 change (squared, over variance)",
            )
        return figures

    def summary(self) -> str:
        """The layer that stands out most, at the first noise level."""
        first = self.table.loc[self.table["level"] == self.table["level"].iloc[0]]
        row = self.table.loc[first["ratio"].idxmax()].to_dict()
        verdict = "massive" if row["massive"] > 0.5 else "not massive"
        return (
            f"The largest value stands out most after layer {row['layer']}: {number(row['largest'])}, "
            f"{number(row['ratio'])} times the median ({verdict}: over {MASSIVE[0]:g} and {MASSIVE[1]:g} times the "
            f"median is), at frame {row['frame']}, row {row['row']}, column {row['col']}. Zeroing channels "
            f"{row['channels']} there changes x0 by {number(row['x0_change'])}, zeroing as many random others by "
            f"{number(row['control_change'])}."
        )


@on_noised_clips
def massive_activations(noised: NoisedClips, n_channels: int = 4, seed: int = 0) -> MassiveActivations:
    """How far the largest activations of `resid_post` stand out, in which channels and where, and what needs them.

    `ratio = max |x| / median |x|` over all tokens and channels of a clip, mean over clips; `largest`: that maximum,
    mean over clips. Range 1 and up; a Gaussian stream of a hundred thousand values has about 6.5. `massive`: share of
    clips with a value over 100 and over 1000 times the median. `channels`: the `n_channels` with the largest absolute
    mean over tokens and clips, largest first (their table also has their largest single value). `token`: where the
    largest value of a token, mean over clips, is greatest.

    `x0_change`: of the target frames, when these channels are zeroed after that layer, at all tokens; in units of the
    variance of the target frames, 0 or more. Control: `control_change`, the same for as many random other channels
    (one draw a layer, by `seed`).

    Misleads: the control matches the number of channels, not their size, and zeroing more takes more away; and it
    takes a channel's constant with its signal, so a large change does not say that the channel informs. Where the
    stream is renormalised after every sublayer (`residual="normed"`), large values cannot build up as elsewhere.
    Source: the definition of massive from language models (arXiv 2402.17762), that they lie in few channels of all
    tokens in image (2510.11538) and video transformers (2603.17825).

    Raises ValueError unless there are as many other channels to compare with.
    """
    cfg = noised.model.cfg
    if not 1 <= n_channels <= cfg.d_model // 2 or seed < 0:
        raise ValueError(
            f"{n_channels=}, {seed=}: {cfg.model_name} has {cfg.d_model} channels, so 1..{cfg.d_model // 2} leave as "
            "many others as a control; seed >= 0"
        )
    rows, channel_rows = [], []
    for level in noised.levels:
        size = StreamSize(noised, level)
        tops, tried = [], {}
        for layer in range(cfg.n_layers):
            order = size.mean[layer].abs().argsort(descending=True).tolist()
            top, rest = order[:n_channels], sorted(order[n_channels:])
            drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed * cfg.n_layers + layer))
            others = [rest[index] for index in drawn[:n_channels].tolist()]
            tops.append(top)
            for name, chosen in (("x0_change", top), ("control_change", others)):
                tried[name, layer] = Ablate(("resid_post", layer), channels=chosen)
        moved = {at: float(values.mean()) for at, values in changes(noised, level, tried).items()}
        for layer, top in enumerate(tops):
            token = int(size.by_token[layer].argmax())
            frame, row, col = noised.grid.coordinates(token)
            rows.append(
                {
                    "level": level,
                    "layer": layer,
                    "ratio": float(size.ratio[layer]),
                    "largest": float(size.top[layer]),
                    "massive": float(size.massive[layer]),
                    "channels": ", ".join(map(str, top)),
                    "token": token,
                    "frame": frame,
                    "row": row,
                    "col": col,
                    "x0_change": moved["x0_change", layer],
                    "control_change": moved["control_change", layer],
                }
            )
            channel_rows += [
                {
                    "level": level,
                    "layer": layer,
                    "rank": rank,
                    "channel": channel,
                    "mean": float(size.mean[layer, channel]),
                    "largest": float(size.by_channel[layer, channel]),
                }
                for rank, channel in enumerate(top)
            ]
    return MassiveActivations(
        table=pd.DataFrame(rows), channels=pd.DataFrame(channel_rows), meta=noised.meta(control_seed=seed)
    )


class StreamSize:
    """Sizes of `resid_post`, layer in front: `ratio`, `top`, `massive`, `mean`, `by_channel`, `by_token`."""

    def __init__(self, noised: NoisedClips, level: float) -> None:
        parts = [_sizes(cache.stack("resid_post").float()) for cache in noised.caches(level, ["resid_post"])]
        ratio, top, mean, by_channel, by_token = (torch.cat(part, 1).cpu() for part in zip(*parts, strict=True))
        self.ratio, self.top, self.mean = ratio.mean(1), top.mean(1), mean.mean(1)
        self.massive = ((top > MASSIVE[0]) & (ratio > MASSIVE[1])).float().mean(1)
        self.by_channel, self.by_token = by_channel.amax(1), by_token.mean(1)


def _sizes(stream: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of `[layer clip pos d_model]`, all but the layer and clip axes reduced."""
    size = stream.abs()
    top = size.amax((-2, -1))
    return top / size.flatten(2).median(-1).values, top, stream.mean(2), size.amax(2), size.amax(3)
