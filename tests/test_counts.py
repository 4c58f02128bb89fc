"""Numbers as users give them: what is no count, no seed and no index is refused, whoever is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vdinterp.checks.counts import MOST, check_between, check_count, check_indices, check_seed

NO_COUNTS = (True, 2.5, 3.0, "3", None, float("nan"), float("inf"), [3], torch.tensor(3.0), -1, 10**30)


@pytest.mark.parametrize("value", NO_COUNTS, ids=repr)
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(ValueError, match=r"n must be a whole number in 1\.\.1000000, got"):
        check_count("n", value)
    with pytest.raises(ValueError, match="seed must be a non-negative integer, got"):
        check_seed(value)


def test_counts_become_plain_integers() -> None:
    assert type(check_count("n", np.int32(3))) is int and check_count("n", MOST) == MOST
    assert check_seed(0) == 0 and check_between("eta", 1, 0, 1) == 1.0
    with pytest.raises(ValueError, match=r"n must be a whole number in 2\.\.7 \(the window\), got 8"):
        check_count("n", 8, 2, 7, "the window")
    for value in (True, "0", float("nan"), None, 1.1):
        with pytest.raises(ValueError, match=r"eta must be a number in \[0, 1\], got"):
            check_between("eta", value, 0, 1)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([True, False], r"booleans are no indices; of a mask give torch.nonzero\(mask\)"),
        ([0, True], "booleans are no indices"),
        (np.array([True, False]), "booleans are no indices"),
        (torch.tensor([True, False]), "booleans are no indices"),
        (torch.tensor([1]), r"whole numbers are wanted; of a tensor give tensor.tolist\(\)"),
        ([1.9], "1.9: whole numbers are wanted"),
        (["1"], "'1': whole numbers"),
        ("01", "give a list of one or more numbers"),
        (b"01", "give a list"),
        (True, "give a list"),
        ({0: 1}, "give a list"),
        ([], "one or more"),
        (range(0), "one or more"),
        (range(10**9), "holds 1,000,000,000 numbers"),
    ],
)
def test_what_is_no_index(chosen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_indices("heads", chosen)


def test_indices() -> None:
    for chosen in (None, [0, 3], (1,), range(2, 9), {4}, np.array([0, 2])):
        check_indices("heads", chosen, low=0)
    with pytest.raises(ValueError, match="steps -1: whole numbers from 0 on"):
        check_indices("steps", [0, -1], low=0)
