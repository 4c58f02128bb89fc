"""Ctrl-C at any moment leaves no hook, no context, no grad mode and no flag behind."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from contrasts import small_pipe
from factories import inputs, tiny_model

import vdinterp
from vdinterp import Ablate, Between
from vdinterp.gradient_state import of_activations_only

PACKAGE = vdinterp.__path__[0]
# Where blocks begin and end. There every single instruction is tried, elsewhere lines drawn at random.
BORDERS = ("models/scopes.py", "gradient_state.py", "torch/autograd/grad_mode.py")
CROSSING = ("__init__", "__enter__", "__exit__", "__get__", "leave", "run_in", "of_activations_only", "_train")


class Interrupter:
    """Raises KeyboardInterrupt at the `at`-th moment of what runs inside; counts moments, those at borders apart."""

    def __init__(self, borders: bool, at: int = -1) -> None:
        self.borders, self.at, self.seen = borders, at, 0

    def __enter__(self) -> Interrupter:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        border = name.endswith(BORDERS) and frame.f_code.co_name in CROSSING
        if border is not self.borders or not (border or name.startswith(PACKAGE)):
            return None
        frame.f_trace_opcodes = border
        self._moment(frame, event, arg)
        return self._moment

    def _moment(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event in ("call", "line", "opcode"):
            if self.seen == self.at:
                sys.settrace(None)
                raise KeyboardInterrupt
            self.seen += 1
        return self._moment


# Python itself swallows what is raised while a generator is thrown away, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_leave_nothing_behind() -> None:
    pipe = small_pipe(n_layers=1, d_mlp=4)
    model = pipe.model
    given = inputs(model, batch=1)
    latents, levels = given["latents"], torch.full((1, 4), 0.5)
    zero = Ablate("z", noise_levels=Between(0, 1))
    bare, n_names = pipe.denoise(latents, levels).detach(), len(model.hook_names)

    def look(activation: torch.Tensor, hook: Any) -> None:
        pass

    def hooks() -> None:
        with model.hooks([("z", look)], [("resid_post", look)]):
            model(**given).sum().backward()

    def intervene() -> None:
        with model.key_partition("frame"), model.hook_ctx(step=0, noise_levels=levels), model.intervene(zero):
            model(**given)

    def run_with_cache() -> None:
        model.run_with_cache(**given, names="z", incl_bwd=True, loss=torch.sum)

    def record() -> None:
        with model.record("z"):
            model(**given)

    def sample() -> None:
        pipe.sample(latents[:, :1], steps=1, interventions=[zero], record=["z"])

    def denoise() -> None:
        pipe.denoise(latents, levels)

    def gradients() -> None:
        of_activations_only(model.parameters(), lambda: model(**given))

    drawn = random.Random(0)
    tried = 0
    for run in (hooks, intervene, run_with_cache, record, sample, denoise, gradients):
        run()  # what is made once is not counted
        for borders, most in ((True, 90), (False, 25)):
            with Interrupter(borders) as counted:
                run()
            moments = range(counted.seen)
            for at in sorted(drawn.sample(moments, min(most, len(moments)))):
                error: KeyboardInterrupt | None = None
                try:
                    with Interrupter(borders, at):
                        run()
                except KeyboardInterrupt as caught:
                    error = caught  # held, with its traceback, as a notebook holds the last one
                if error is None:  # the run was shorter this time
                    continue
                tried += 1
                left = check(model)
                assert left is None, f"{run.__name__}, moment {at} of {len(moments)}: {left}"
        assert torch.equal(pipe.denoise(latents, levels), bare) and len(model.hook_names) == n_names
    assert tried >= 500


def check(model: Any) -> str | None:
    """What an interrupt left behind."""
    if model.has_live_hooks or model.list_hooks():
        return "hooks"
    if any(dict(point.ctx) for point in model.hook_points()) or model.sublayer(0).partition != "frame":
        return "context"
    if not torch.is_grad_enabled() or not all(parameter.requires_grad for parameter in model.parameters()):
        return "gradients"
    return None


def test_what_an_interrupt_left_is_swept_away() -> None:
    """Scopes that nobody closed do not pile up, and compiled code is told that there are none."""
    model = tiny_model()
    run: Callable[[], Any] = lambda: model.run_with_hooks(  # noqa: E731
        **inputs(model), fwd_hooks=[("z", lambda z, hook: None)]
    )
    run()  # what is made once is not counted
    with Interrupter(borders=True) as counted:
        run()
    errors, moments = [], random.Random(1).sample(range(counted.seen), 60)
    for at in moments:
        try:
            with Interrupter(True, at):
                run()
        except KeyboardInterrupt as error:
            errors.append(error)
    assert len(errors) == len(moments)
    run()
    assert not model.may_have_hooks
