"""TokenGrid: which patch of which frame a token is, and how far two tokens are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int

from vdinterp.checks.counts import check_count


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of a clip, flattened in the order `(frame row col)`.

    >>> grid = TokenGrid(n_frames=8, n_rows=7, n_cols=9)
    >>> grid.index(frame=2, row=3, col=4), grid.coordinates(157)
    (157, (2, 3, 4))
    """

    n_frames: int
    n_rows: int
    n_cols: int

    def __post_init__(self) -> None:
        for what, value in (("n_frames", self.n_frames), ("n_rows", self.n_rows), ("n_cols", self.n_cols)):
            check_count(what, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.n_frames, self.n_rows, self.n_cols

    @property
    def n_tokens(self) -> int:
        return self.n_frames * self.n_rows * self.n_cols

    @property
    def tokens_per_frame(self) -> int:
        return self.n_rows * self.n_cols

    def index(self, frame: int, row: int, col: int) -> int:
        """Token index of a patch. Negative coordinates count from the end; raises `ValueError` outside the grid."""
        wrapped = []
        for name, value, size in zip(("frame", "row", "col"), (frame, row, col), self.shape, strict=True):
            if not -size <= value < size:
                raise ValueError(f"{name} {value} is outside the grid: {size} {name}s, so 0..{size - 1}.")
            wrapped.append(value % size)
        return (wrapped[0] * self.n_rows + wrapped[1]) * self.n_cols + wrapped[2]

    def coordinates(self, token: int) -> tuple[int, int, int]:
        """`(frame, row, col)` of one token index."""
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"Token {token} is outside the grid of {self.n_tokens} tokens {self.shape}.")
        frame, within = divmod(token, self.tokens_per_frame)
        return frame, *divmod(within, self.n_cols)

    def all_coordinates(self, device: torch.device | str | None = None) -> Int[torch.Tensor, "pos 3"]:
        """`(frame, row, col)` of every token, in token order."""
        axes = [torch.arange(size, device=device) for size in self.shape]
        return torch.cartesian_prod(*axes).reshape(-1, 3)

    def frame_of(self, device: torch.device | str | None = None) -> Int[torch.Tensor, "pos"]:
        """The frame of every token."""
        return torch.arange(self.n_frames, device=device).repeat_interleave(self.tokens_per_frame)

    def cell_of(self, device: torch.device | str | None = None) -> Int[torch.Tensor, "pos"]:
        """The position within its frame (`row * n_cols + col`) of every token."""
        return torch.arange(self.tokens_per_frame, device=device).repeat(self.n_frames)

    def displacement(self, query: int, key: int) -> tuple[int, int, int]:
        """`key - query` as `(frames, rows, cols)`: `(-1, 0, 0)` is the same place one frame earlier."""
        return tuple(k - q for q, k in zip(self.coordinates(query), self.coordinates(key), strict=True))  # type: ignore[return-value]

    def displaced(self, frame: int, row: int, col: int) -> Bool[torch.Tensor, "query key"]:
        """Which (query, key) pairs are exactly `(frame, row, col)` apart, key minus query."""
        at = self.all_coordinates()
        wanted = torch.tensor([frame, row, col])
        return (at[None, :] - at[:, None] == wanted).all(-1)

    def neighbours(self, token: int, radius: int = 1) -> list[int]:
        """Tokens of the same frame within `radius` rows and columns, the token itself left out."""
        frame, row, col = self.coordinates(token)
        rows = range(max(0, row - radius), min(self.n_rows, row + radius + 1))
        cols = range(max(0, col - radius), min(self.n_cols, col + radius + 1))
        found = [self.index(frame, r, c) for r in rows for c in cols]
        return [index for index in found if index != token]

    def tokens(
        self, frames: list[int] | None = None, rows: list[int] | None = None, cols: list[int] | None = None
    ) -> list[int]:
        """Indices of all tokens in the given frames, rows and columns (None: all of them), in token order.

        Negative coordinates count from the end; raises `ValueError` outside the grid.
        """
        picked = [
            range(size) if chosen is None else chosen
            for chosen, size in zip((frames, rows, cols), self.shape, strict=True)
        ]
        return sorted({self.index(f, r, c) for f in picked[0] for r in picked[1] for c in picked[2]})
