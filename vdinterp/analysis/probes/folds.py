"""Linear fits scored on clips that they never saw: what `probes.fit` is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vdinterp.analysis.intervals import resamples, tails

PENALTIES = (10.0, 1.0, 0.1, 0.01, 0.001)  # squared weights per sample, features standardised: from strong to weak
RESAMPLES, INTERVAL = 1000, 0.95


@dataclass(frozen=True)
class Linear:
    """`x @ weight.T + bias`: class scores or numbers, `weight` [out channel] in the units of `x`."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class Held:
    """Held-out predictions, summed over each clip: `sums` [clip stat out]. All that a score of any draw needs."""

    sums: np.ndarray
    is_class: bool

    def score(self, draws: np.ndarray) -> np.ndarray:
        """Balanced accuracy or R^2 (mean over outputs) when clip i counts `draws[.., i]` times."""
        sums = np.moveaxis(np.tensordot(draws, self.sums, 1), -2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.is_class:
                right, total = sums
                return np.nanmean(np.where(total > 0, right / total, np.nan), -1)  # a draw may lack a class
            error, square, total, count = sums
            spread = square - total**2 / count
            return np.where(spread > 0, 1 - error / spread, np.nan).mean(-1)


class Scorer:
    """Cross-validation over clips, the same folds and bootstrap draws for everything it scores.

    `y`: classes 0, 1, .. [sample] (each occurs), or numbers [sample out]. `clip` [sample]: the clip of each sample.
    """

    def __init__(self, y: np.ndarray, clip: np.ndarray, folds: int, seed: int) -> None:
        self.y, self.is_class = y, y.ndim == 1
        self.n_out = int(y.max()) + 1 if self.is_class else y.shape[1]
        names, self.clip = np.unique(clip, return_inverse=True)
        self.n_clips = len(names)
        order = np.random.default_rng(seed).permutation(self.n_clips)
        self.fold = (np.argsort(order) % folds)[self.clip]
        part = np.random.default_rng([seed, 1]).permutation(self.n_clips) % 4
        self.chooses = (part == 0)[self.clip]  # a quarter of the clips
        drawn = resamples(self.n_clips, RESAMPLES, seed)
        self.draws = np.concatenate([np.ones((1, self.n_clips)), drawn])  # the clips as they are come first

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> Held:
        """Scores of the probes of `x` [sample channel], each of a fold's clips by the fit to the other folds'. `y`:
        other labels, for the control."""
        y = self.y if y is None else y
        found = np.empty((len(y), self.n_out))
        for fold in np.unique(self.fold):
            test = self.fold == fold
            found[test] = self.fit(x, y, ~test)(x[test])
        return self.held(y, found.argmax(1) if self.is_class else found)

    def constant(self) -> Held:
        """Scores of always the most frequent class, or the mean."""
        value = np.bincount(self.y).argmax() if self.is_class else self.y.mean(0)
        return self.held(self.y, np.broadcast_to(value, self.y.shape))

    def fit(self, x: np.ndarray, y: np.ndarray, train: np.ndarray) -> Linear:
        """A fit to the samples `train`, with the penalty that does best on a quarter of their clips when fitted to the
        rest of them."""
        known, unknown = train & ~self.chooses, train & self.chooses
        best = PENALTIES[0]
        if known.any() and unknown.any():
            scores = [self._try(x, y, known, unknown, penalty) for penalty in PENALTIES]
            best = PENALTIES[int(np.argmax(scores))]  # of equals the strongest
        return self._linear(x[train], y[train], best)

    def _try(self, x: np.ndarray, y: np.ndarray, known: np.ndarray, unknown: np.ndarray, penalty: float) -> float:
        found = self._linear(x[known], y[known], penalty)(x[unknown])
        if not self.is_class:
            return -float(np.square((found - y[unknown]) / y.std(0)).mean())
        right = found.argmax(1) == y[unknown]
        return float(np.mean([right[y[unknown] == label].mean() for label in np.unique(y[unknown])]))

    def _linear(self, x: np.ndarray, y: np.ndarray, penalty: float) -> Linear:
        x = x.astype(np.float64)
        mean, scale = x.mean(0), x.std(0)
        scale[scale < 1e-8 * max(1e-30, scale.max())] = 1.0  # a channel that never changes
        z = (x - mean) / scale
        weight, bias = _logistic(z, y, self.n_out, penalty) if self.is_class else _ridge(z, y, penalty)
        return Linear(weight / scale, bias - weight @ (mean / scale))

    def held(self, y: np.ndarray, found: np.ndarray) -> Held:
        shape = (self.n_clips, self.n_out)
        if self.is_class:
            right, total = np.zeros(shape), np.zeros(shape)
            np.add.at(total, (self.clip, y), 1)
            np.add.at(right, (self.clip, y), found == y)
            return Held(np.stack([right, total], 1), True)
        y, found = y - y.mean(0), found - y.mean(0)  # for the precision of the sums
        stats = [np.square(found - y), np.square(y), y, np.ones_like(y)]
        sums = np.zeros((self.n_clips, len(stats), self.n_out))
        np.add.at(sums, self.clip, np.stack(stats, 1))
        return Held(sums, False)

    def interval(self, scores: np.ndarray) -> tuple[float, float, float]:
        """Value and ends of the interval from `Held.score(self.draws)`, or from a difference of two of them; of fewer
        than 30 clips further out than the percentiles."""
        low, high = np.nanquantile(scores[1:], tails(self.n_clips, INTERVAL))
        return float(scores[0]), float(low), float(high)

    def association(self, x: np.ndarray) -> np.ndarray:
        """`[out channel]`: each class's mean less the mean of all; of numbers, the covariance with the number over its
        standard deviation."""
        x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
        if self.is_class:
            return np.stack([x[self.y == label].mean(0) for label in range(self.n_out)])
        return ((self.y - self.y.mean(0)) / self.y.std(0)).T @ x / len(x)


def _logistic(z: np.ndarray, y: np.ndarray, n_out: int, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial, classes weighted alike, since balanced accuracy is what is measured."""
    present = np.unique(y)
    weight, bias = np.zeros((n_out, z.shape[1])), np.full(n_out, -np.inf)  # what was never seen is never said
    if len(present) == 1:
        bias[present] = 0.0
        return weight, bias
    settings: dict[str, Any] = {"C": 1 / (penalty * len(z)), "class_weight": "balanced", "tol": 1e-3, "max_iter": 2000}
    model = need_sklearn().LogisticRegression(**settings).fit(z, y)
    halves = np.array([[-0.5], [0.5]])
    two = len(present) == 2  # scikit-learn then gives the difference
    weight[present] = halves * model.coef_ if two else model.coef_
    bias[present] = (halves * model.intercept_)[:, 0] if two else model.intercept_
    return weight, bias


def _ridge(z: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    mean = y.mean(0)
    gram = z.T @ z / len(z) + penalty * np.eye(z.shape[1])
    return np.linalg.solve(gram, z.T @ (y - mean) / len(z)).T, mean


def need_sklearn() -> Any:
    """`sklearn.linear_model`; ImportError says how to get it."""
    try:
        import sklearn.linear_model
    except ImportError as error:
        raise ImportError("probes of classes need scikit-learn: pip install 'vdinterp[probes]'") from error
    return sklearn.linear_model
