"""From patch to patch: what a head makes of one patch's content in the denoised version of another, from weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float

from vdinterp import plotting
from vdinterp.analysis.circuits.weights import FoldedWeights, check_head
from vdinterp.diffusion import split_prediction
from vdinterp.pipeline import VideoDiffusion
from vdinterp.results import Result
from vdinterp.site import FINAL_LAYER, Site
from vdinterp.words.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go

SAMPLES = 100  # random connections that chance is measured with
MOST_DRAWN = 64  # patch values up to which the matrix is drawn whole
MOST_SHOWN = 8  # directions drawn as patches


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchCircuit(Result):
    """The patch-to-patch circuit of one head; see `patch_circuit`.

    `matrix` `[out in]`, values of a patch (normalised latents; pixels for pixel models), in the order (channel, row,
    col). `singular` `[rank]`, largest first, with the directions `reads`, `writes` `[rank channel row col]`:
    `matrix = sum_r singular_r writes_r reads_r^T` with unit directions. `copying` and `chance`.
    """

    title = "Patch-to-patch circuit"
    layer: int
    head: int
    matrix: Float[torch.Tensor, "out in"]
    singular: Float[torch.Tensor, " rank"]
    reads: Float[torch.Tensor, "rank channel row col"]
    writes: Float[torch.Tensor, "rank channel row col"]
    copying: float
    chance: float

    def to_frame(self) -> pd.DataFrame:
        """One row a direction: `rank singular_value agreement`, the last the cosine of what is read and written."""
        agreement = (self.reads * self.writes).sum((1, 2, 3))
        return pd.DataFrame(
            {"rank": range(len(self.singular)), "singular_value": self.singular.numpy(), "agreement": agreement.numpy()}
        )

    def plot(self) -> dict[str, go.Figure]:
        """The matrix, where it is small, and the strongest directions as patches."""
        name, figures = f"head {self.layer}.{self.head}", {}
        if len(self.matrix) <= MOST_DRAWN:
            labels = [f"{c}:{row},{col}" for c, row, col in np.ndindex(*self.reads.shape[1:])]
            title = f"From patch (across) to x0 of a patch (down) through {name}"
            figures[title] = plotting.heatmap(
                self.matrix.numpy(),
                x=labels,
                y=labels,
                title=title,
                x_title="value that is read (channel:row,col)",
                y_title="value of x0 (channel:row,col)",
                value_title="x0 per value read",
                diverging=True,
                number_format=".2f",
            )
        shown = min(MOST_SHOWN, len(self.singular))
        title = f"Strongest directions of {name}: what is read, and what of x0 is written for it"
        both = torch.cat([self.reads[:shown], self.writes[:shown]], 1).transpose(0, 1).numpy()
        rows = [f"{what} {channel}" for what in ("read", "write") for channel in range(self.reads.shape[1])]
        columns = [f"{rank}: {number(value)}" for rank, value in enumerate(self.singular[:shown].tolist())]
        labels = {
            "title": title,
            "x_title": "direction: singular value",
            "y_title": "channel",
            "value_title": "value",
            "diverging": True,
        }
        if both[0, 0].size == 1:
            figures[title] = plotting.heatmap(both[..., 0, 0], x=columns, y=rows, number_format=".2f", **labels)
        else:
            figures[title] = plotting.tiles(both, rows=rows, columns=columns, **labels)
        return figures

    def summary(self) -> str:
        """The copying score beside its chance, and the strongest direction."""
        first = self.to_frame().iloc[0]
        return (
            f"Head {self.layer}.{self.head}, noise level {self.meta['noise_level']:g} to {self.meta['query_level']:g}: "
            f"copying score {self.copying:.2f} (-1 to 1; 95 % of random connections lie within ±{self.chance:.2f}). "
            f"Its strongest direction has singular value {number(first['singular_value'])}; what is read and what is "
            f"written there have a cosine of {first['agreement']:.2f}."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CopyingScores(Result):
    """Copying scores of all heads; see `copying`. `table`: `layer head value chance size` (Frobenius norm)."""

    title = "Copying of patches into x0"
    table: pd.DataFrame

    def values(self) -> np.ndarray:
        """The scores, `[layer head]`."""
        return self.table.pivot(index="layer", columns="head", values="value").to_numpy()

    def plot(self) -> dict[str, go.Figure]:
        """A layer x head grid."""
        title = f"Copying score, from level {self.meta['noise_level']:g} to level {self.meta['query_level']:g}"
        unit = "copying score, -1 to 1"
        return {
            title: plotting.layer_head(
                self.values(), title=title, value_title=unit, zmin=-1.0, zmax=1.0, diverging=True
            )
        }

    def summary(self) -> str:
        """The heads beyond chance that copy most, and those that take away most."""
        rows = self.table.to_dict("records")
        beyond = [row for row in rows if abs(row["value"]) > row["chance"] + 1e-6]  # of rank 1 both are 1
        beyond.sort(key=lambda row: -row["value"])
        named = [f"{row['layer']}.{row['head']} ({row['value']:.2f}, chance ±{row['chance']:.2f})" for row in beyond]
        n = sum(row["value"] > 0 for row in beyond)
        return (
            f"Of {len(rows)} heads, {len(beyond)} lie beyond chance. Copying: {', '.join(named[:n][:4]) or 'none'}. "
            f"Writing the opposite: {', '.join(named[n:][::-1][:4]) or 'none'}."
        )


def patch_circuit(
    pipe: VideoDiffusion, layer: int, head: int, noise_level: float, query_level: float | None = None
) -> PatchCircuit:
    """What attending to a patch adds to x0 of the patch that attends, through one head alone.

    The product of patch embedding, entrance (centring, `1 + scale`), W_V, W_O, gate, final layer with its modulation,
    and in the `normed` kind the entrances of all sublayers before and after; times the derivative of x0 by the
    prediction (1 for x0, `-sigma / signal` for eps, `-sigma / (signal^2 + sigma^2)` for v, `-sigma / (signal + sigma)`
    for flow), so that a positive entry raises x0 whatever the objective. It is the Jacobian of x0 by the noisy patch at
    attention 1 with every LayerNorm's scale held at 1. A forward pass divides it by those scales, which weights do not
    know; they are positive, so that no sign depends on them.

    `copying = sum of eigenvalues / sum of |eigenvalues|` (Elhage et al. 2021): -1 to 1; 1 means every pattern that it
    passes on comes out with its own sign, -1 with the opposite one. `chance`: 95 % of scores lie within +-chance when
    what W_V reads is connected with what W_O writes at random (100 rotations of the head's space).

    Args:
        noise_level: of the frame that is read, a share in [0, 1].
        query_level: of the frame that is denoised, which is not clean; default the same.

    Misleads: other paths than this one are left out (MLPs, further heads, and the patch's own way through the stream);
    a head may copy what an earlier one brought, which scores here as nothing. Nothing has a sign, too: a head that
    writes where the final layer does not look scores 1 or -1 from what centring leaves of it, so mind chance and size.
    Raises ValueError for heads or levels that do not exist, where a patch comes out with another number of values, and
    for an eps model at a level without signal, whose x0 it does not determine.
    """
    _check(pipe)
    check_head(pipe.model, layer, head)
    ends = _Ends(pipe, noise_level, query_level)
    into, out = (factor[head] for factor in ends.of_layer(layer))
    matrix = (into @ out).T
    cfg = pipe.model.cfg
    rank = min(cfg.d_head, len(matrix))
    left, singular, right = torch.linalg.svd(matrix)
    shape = (rank, cfg.in_channels, *cfg.patch_size[1:])
    reads, writes = right[:rank], left.T[:rank]
    sign = torch.where(reads.gather(1, reads.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0)  # an svd leaves it open
    return PatchCircuit(
        layer=layer,
        head=head,
        matrix=matrix.float(),
        singular=singular[:rank].float(),
        reads=(reads * sign).float().reshape(shape),
        writes=(writes * sign).float().reshape(shape),
        copying=eigenvalue_score(into, out),
        chance=_chance(into, out),
        meta=ends.meta,
    )


def copying(pipe: VideoDiffusion, noise_level: float, query_level: float | None = None) -> CopyingScores:
    """`copying` and `chance` of every head's patch-to-patch circuit; arguments and errors as of `patch_circuit`."""
    _check(pipe)
    ends, rows = _Ends(pipe, noise_level, query_level), []
    for layer in range(pipe.model.cfg.n_layers):
        for head, (into, out) in enumerate(zip(*ends.of_layer(layer), strict=True)):
            rows.append(
                {
                    "layer": layer,
                    "head": head,
                    "value": eigenvalue_score(into, out),
                    "chance": _chance(into, out),
                    "size": float((into @ out).norm()),
                }
            )
    return CopyingScores(table=pd.DataFrame(rows), meta=ends.meta)


def eigenvalue_score(A: Float[torch.Tensor, "left rank"], B: Float[torch.Tensor, "rank left"]) -> float:
    """Sum of the eigenvalues of `A @ B` over the sum of their sizes (Elhage et al. 2021): -1 to 1, NaN for nothing.

    1: all are positive, and what goes in comes out with its own sign. Chance: about 0, see `patch_circuit`.
    """
    return float(_scores((B.double() @ A.double())[None])[0])


def _scores(small: Float[torch.Tensor, "sample rank rank"]) -> Float[torch.Tensor, " sample"]:
    sizes = torch.linalg.eigvals(small).abs().sum(-1)
    # what rounding leaves of a zero matrix has no sign
    sizes = torch.where(sizes > 1e-30, sizes, torch.nan)
    return small.diagonal(dim1=-2, dim2=-1).sum(-1) / sizes


def _chance(into: Float[torch.Tensor, "in d_head"], out: Float[torch.Tensor, "d_head out"]) -> float:
    """The 95 % quantile of the size of the score when the head's space is rotated at random between the two."""
    generator = torch.Generator().manual_seed(0)
    turns = torch.randn(SAMPLES, into.shape[1], into.shape[1], generator=generator, dtype=torch.double)
    turns = torch.linalg.qr(turns).Q
    # the smaller of the two products that have the same eigenvalues
    small = into @ turns @ out if len(into) <= into.shape[1] else out @ into @ turns
    return float(_scores(small).abs().quantile(0.95))


class _Ends:
    """Both ends of every head's patch-to-patch circuit, at two noise levels."""

    def __init__(self, pipe: VideoDiffusion, noise_level: float, query_level: float | None) -> None:
        cfg, schedule = pipe.model.cfg, pipe.schedule
        query = noise_level if query_level is None else query_level
        k = schedule.k(query, "query_level")
        if not bool((k >= 0).all()):
            raise ValueError(
                f"query_level={query}: a clean frame is not denoised. Give the level of the frame that attends, in "
                "(0, 1]; noise_level, of the frame that is read, may be 0"
            )
        self.weights = FoldedWeights(pipe.model, noise_level, query)
        if cfg.in_channels != cfg.out_channels:
            raise ValueError(
                f"{cfg.model_name} makes {cfg.out_channels} channels of {cfg.in_channels}: a patch comes out with "
                "other values than it went in, so nothing can be a copy"
            )
        one, zero = torch.ones(1, 1), torch.zeros(1, 1)
        slope = split_prediction(pipe.diffusion.objective, one, zero, *schedule.coefficients(k.view(1, 1)))[0]
        network: Any = pipe.model
        self.embed = network.patch_embed.weight.detach().flatten(1).T.double().cpu()
        final = network.final.weights[0].detach().double().cpu()
        if cfg.unpatch_order == "pqc":  # into the order of the patch embedding
            p, q = cfg.patch_size[1:]
            final = rearrange(final, "(p q channel) d_model -> (channel p q) d_model", p=p, q=q)
        self.unembed = self.weights.sides["query"].read(FINAL_LAYER, final.T * float(slope))
        self.meta = {**self.weights.meta, "objective": pipe.diffusion.objective}

    def of_layer(
        self, layer: int
    ) -> tuple[Float[torch.Tensor, "head values d_head"], Float[torch.Tensor, "head d_head values"]]:
        """From the values of a patch into every head, and out of it to x0."""
        place, weights = Site(layer, "attn"), self.weights
        into = self.embed @ weights.sides["key"].carry_back(weights.read(layer, "v"), None, place)
        return into, weights.write(layer) @ weights.sides["query"].carry_back(self.unembed, place, FINAL_LAYER)


def _check(pipe: Any) -> None:
    if not isinstance(pipe, VideoDiffusion):
        raise ValueError(f"a pipeline is needed, which knows what its model predicts; got {type(pipe).__name__}")
