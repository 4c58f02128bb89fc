"""What is wrong with a value, by what it should have been. Every one of these must be refused."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

NAN, INF = float("nan"), float("inf")


class Odd:
    """A stranger."""

    def __repr__(self) -> str:
        return "Odd()"


def of(*values: object) -> st.SearchStrategy:
    return st.sampled_from(values)


ODD = of(Odd(), b"bytes", {"a": 1}, 1j, print)
COUNTS = of(True, -1, 1.5, NAN, INF, "3", [1], 10**12, -(10**12), 2.0, np.float64(3)) | ODD
POSITIVE_COUNTS = COUNTS | of(0, None, False)
SEEDS = of(-1, 1.5, "0", NAN, [0], None, -(10**30)) | ODD
INDICES = (
    of([True, False], [], [99], [-99], ["0"], [1.5], "01", [None], [NAN], [10**30], np.array([True, False]), 3.5) | ODD
)
SHARES = (
    of([0.0], [-0.1], [1.5], [949], [NAN], ["0.9"], [], [0.9, 0.9], [None], [True], 0.9 + 1j, "0.9", [INF], None) | ODD
)
SHARE = of(0.0, -0.1, 1.5, 949, NAN, "0.9", INF, [[0.5]], True) | ODD
HOOK_NAMES = (
    of(
        "zz",
        "",
        None,
        5,
        -1,
        b"z",
        [],
        ("z", 99),
        ("z", "a"),
        ["z", 3],
        ["z", None],
        1.5,
        "blocks.9.hook_resid_pre",
        lambda name: False,
        ("z", 0, "nose"),
    )
    | ODD
)
CHOICES = of("nonsense", "", None, 3, True, ["zero"], b"x") | ODD
NUMBERS = of(NAN, "1", None, [1.0], True, 1j) | ODD
FRACTIONS = of(NAN, INF, "1", -1.0, [1.0], 1j) | ODD
TENSORS = of(None, [1.0], "x", 3, np.zeros((2, 4)), torch.tensor(NAN), torch.zeros(0), torch.zeros(7, 7), True) | ODD
FOLDERS = of("", None, 5, "/dev/null/x", "/proc/nowhere", b"out", "a\0b", []) | ODD


def latents(good: torch.Tensor) -> st.SearchStrategy:
    """Wrong latents or videos `[batch frame channel height width]`."""
    spoilt = good.clone()
    spoilt[0, 0, 0, 0, 0] = NAN
    return (
        of(None, good.tolist(), good.numpy(), good[0], good[:0], good[:, :0], good[..., :-1], good[None], "latents")
        | of(good.repeat(1, 1, 3, 1, 1), good.to(torch.int64), good.bool(), good.to(torch.complex64), spoilt)
        | ODD
    )


def levels(good: torch.Tensor) -> st.SearchStrategy:
    """What are no noise levels `[batch frame]`."""
    whole = torch.full(good.shape, 949)
    wrong = (torch.full(good.shape, NAN), torch.full(good.shape, INF), good.to(torch.complex64), good.bool(), whole)
    return of(None, 949, good.tolist(), good[0], good[:, :-1], good[None], good + 1.5, good - 1.5, "x", *wrong) | of(
        good.numpy(), good[:0]
    )


def k(good: torch.Tensor) -> st.SearchStrategy:
    """Wrong levels `[batch frame]` of a model with a thousand of them."""
    share = torch.full(good.shape, 0.9)
    return (
        of(
            None,
            0.9,
            share,
            good.tolist(),
            good[0],
            good[:, :-1],
            good[None],
            good + 5000,
            good - 5000,
            "k",
            good.bool(),
        )
        | of(good.to(torch.complex64), torch.full(good.shape, NAN), torch.full(good.shape, INF), good.numpy(), good[:0])
        | ODD
    )
