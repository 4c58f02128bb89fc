"""OV and QK circuits of one head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Complex, Float

from vdinterp import plotting
from vdinterp.analysis.circuits.patches import eigenvalue_score
from vdinterp.analysis.circuits.weights import (
    FoldedWeights,
    check_displacement,
    check_head,
    check_model,
    rotation,
)
from vdinterp.models import HookedVideoDiT
from vdinterp.models.hooks import FactoredMatrix
from vdinterp.models.weights import undetermined
from vdinterp.results import Result
from vdinterp.words.wording import number

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, kw_only=True, eq=False)
class _Circuit(Result):
    A: Float[torch.Tensor, "d_model d_head"]
    B: Float[torch.Tensor, "d_head d_model"]
    layer: int
    head: int

    @property
    def matrix(self) -> FactoredMatrix:
        """`A @ B` as TransformerLens's low-rank matrix: `.AB`, `.svd()`, `.eigenvalues`, `.norm()`."""
        return FactoredMatrix(self.A, self.B)

    @property
    def AB(self) -> Float[torch.Tensor, "d_model d_model"]:
        """The matrix itself, multiplied out."""
        return self.A @ self.B

    def svd(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`U, S, Vh` of `A @ B`, of rank `d_head`; as `matrix.svd()`."""
        return self.matrix.svd()

    @property
    def eigenvalues(self) -> Complex[torch.Tensor, " d_head"]:
        """Those of `A @ B` that may differ from 0."""
        return self.matrix.eigenvalues

    @property
    def eigenvalue_score(self) -> float:
        """Sum of eigenvalues over sum of their sizes, -1 to 1; see `vdinterp.circuits.eigenvalue_score`."""
        return eigenvalue_score(self.A, self.B)

    def to_frame(self) -> pd.DataFrame:
        """The spectrum, largest first: `rank singular_value real imaginary` (singular values and eigenvalues are
        sorted each for themselves)."""
        values = torch.linalg.eigvals(self.B.double() @ self.A.double())
        values = values[values.abs().argsort(descending=True)]
        singular = self.matrix.svd()[1].double()
        return pd.DataFrame(
            {
                "rank": range(len(values)),
                "singular_value": singular.cpu().numpy(),
                "real": values.real.cpu().numpy(),
                "imaginary": values.imag.cpu().numpy(),
            }
        )

    def plot(self) -> dict[str, go.Figure]:
        """Singular values, and eigenvalues in the complex plane."""
        table, name = self.to_frame(), f"the {self.title} of head {self.layer}.{self.head}"
        singular, eigen = f"Singular values of {name}", f"Eigenvalues of {name} in the complex plane"
        return {
            singular: plotting.lines(
                table, x="rank", y="singular_value", title=singular, x_title="rank", y_title="singular value"
            ),
            eigen: plotting.scatter(
                table, x="real", y="imaginary", label="rank", title=eigen, x_title="real part", y_title="imaginary part"
            ),
        }

    def summary(self) -> str:
        """How many directions it uses, and its eigenvalue score."""
        power = self.to_frame()["singular_value"] ** 2
        used = float(power.sum() ** 2 / (power**2).sum()) if power.sum() > 0 else 0.0
        levels = ", ".join(f"{key} {value:g}" for key, value in self.meta.items() if isinstance(value, float))
        return (
            f"{self.title} of head {self.layer}.{self.head} ({levels}): norm {number(float(power.sum()) ** 0.5)}, "
            f"about {used:.1f} of {len(power)} directions (squared sum over sum of squares of squared singular "
            f"values), eigenvalue score {self.eigenvalue_score:.2f}."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class OVCircuit(_Circuit):
    """What one head moves: `output(normalized) = normalized @ A @ B + constant`; see `ov`."""

    title = "OV circuit"
    constant: Float[torch.Tensor, " d_model"]

    def output(self, normalized: Float[torch.Tensor, "... d_model"]) -> Float[torch.Tensor, "... d_model"]:
        """What the head adds to the stream when it attends to this token alone (its `ln.hook_normalized`)."""
        return normalized @ self.A @ self.B + self.constant


@dataclass(frozen=True, kw_only=True, eq=False)
class QKCircuit(_Circuit):
    """What one head looks for: scores of normalised streams `q`, `k` are `q A B k + query_bias q + key_bias k +
    constant`; see `qk`."""

    title = "QK circuit"
    query_bias: Float[torch.Tensor, " d_model"]
    key_bias: Float[torch.Tensor, " d_model"]
    constant: float

    def scores(
        self, query: Float[torch.Tensor, "... d_model"], key: Float[torch.Tensor, "... d_model"]
    ) -> Float[torch.Tensor, "..."]:
        """`hook_attn_scores` of tokens this far apart, from their `ln.hook_normalized`."""
        both = ((query @ self.A) * (key @ self.B.mT)).sum(-1)
        return both + query @ self.query_bias + key @ self.key_bias + self.constant


def ov(model: HookedVideoDiT, layer: int, head: int, noise_level: Any, query_level: Any = None) -> OVCircuit:
    """The OV circuit of a head of self-attention, with everything that stands around it folded in.

    `A = C diag(1 + scale) W_V [d_model d_head]`, `B = W_O diag(gate) [d_head d_model]`, `constant = (shift W_V + b_V)
    W_O diag(gate)`; C subtracts LayerNorm's mean, affine weights of a norm are in scale and shift. With the keys'
    `blocks.L.attn.ln.hook_normalized` as `n`, the head adds `pattern @ (n A B + constant)` to the stream, exactly: it
    is `cache.head_results(L)[:, :, head]`. For a part of the stream, divided by the cached `ln.hook_scale`, `n A B` is
    its share. In the `normed` kind (DFoT) every later sublayer scales what was added: `patch_circuit` and `composition`
    fold that, this does not.

    Args:
        noise_level: of the frame that is read (the key's), a share in [0, 1].
        query_level: of the frame that is written to, whose gate it is; default the same.

    Misleads: `eigenvalue_score` compares what is read with what is written in the stream's own channels; a head that
    copies from one subspace to another has none (see `patch_circuit`).
    Raises ValueError for heads or levels that do not exist.
    """
    check_model(model)
    check_head(model, layer, head)
    folded = FoldedWeights(model, noise_level, query_level)
    write = folded.write(layer)[head]
    return OVCircuit(
        A=_given(model, folded.read(layer, "v")[head]),
        B=_given(model, write),
        layer=layer,
        head=head,
        constant=_given(model, folded.constant(layer, "v")[head] @ write),
        meta=folded.meta,
    )


def qk(
    model: HookedVideoDiT,
    layer: int,
    head: int,
    noise_level: Any,
    displacement: tuple[int, int, int],
    query_level: Any = None,
) -> QKCircuit:
    """The QK circuit of a head of self-attention, for keys that lie at `displacement` from their query.

    `A = C diag(1 + scale) W_Q / sqrt(d_head)`, `B = R(displacement) (C diag(1 + scale) W_K)^T`, with R the rotation of
    position embedding (identity without) and the modulation of the query's and of the key's frame. Shifts and biases
    give `query_bias`, `key_bias` `[d_model]` and `constant`, so that with the `blocks.L.attn.ln.hook_normalized` of
    both tokens `hook_attn_scores = n_q A B n_k + query_bias n_q + key_bias n_k + constant`, exactly. The rotation is
    in all four, so the constant may favour one displacement over another.

    Args:
        noise_level: of the key's frame, a share in [0, 1]; `query_level`: of the query's; default the same.
        displacement: key minus query, (frames, rows, cols).

    Misleads: singular vectors say what *would* match; whether streams ever hold that, the weights do not say.
    Raises ValueError for heads, levels or displacements that do not exist; and where the weights do not determine it
    (`qk_norm`: every query and key is divided by its own size; rotation over all heads at once): use
    `qk_activations(model, cache, layer, head)` there.
    """
    check_model(model)
    check_head(model, layer, head)
    check_displacement(model, layer, displacement)
    if reason := undetermined(model):
        raise ValueError(
            f"{model.cfg.model_name}: {reason}. Measure it: qk_activations(model, cache, layer, head), with a cache of "
            "rot_q and rot_k"
        )
    folded = FoldedWeights(model, noise_level, query_level)
    turned = rotation(model, layer, displacement)
    scale = model.sublayer(layer).scale
    w_q, w_k = (folded.read(layer, part)[head] for part in ("q", "k"))
    b_q, b_k = (folded.constant(layer, part)[head] for part in ("q", "k"))
    return QKCircuit(
        A=_given(model, w_q * scale),
        B=_given(model, turned @ w_k.T),
        layer=layer,
        head=head,
        query_bias=_given(model, w_q @ turned @ b_k * scale),
        key_bias=_given(model, b_q @ turned @ w_k.T * scale),
        constant=float(b_q @ turned @ b_k) * scale,
        meta=folded.meta | {"displacement": list(displacement)},
    )


def _given(model: HookedVideoDiT, weight: torch.Tensor) -> torch.Tensor:
    """Where the model is, in its precision, but at least float32."""
    return weight.to(device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
