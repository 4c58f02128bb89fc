"""Interventions that would do something else than they say, or nothing: refused before anything runs."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from contrasts import QUIET, given, small_pipe
from factories import inputs, tiny_model

import vdinterp as vd
from vdinterp.analysis import Contrast
from vdinterp.analysis.patching.judging import Judge, recovered
from vdinterp.interventions import (
    Ablate,
    Between,
    Custom,
    Freeze,
    Intervention,
    MaskAttention,
    Patch,
    RotateRope,
    SetCondition,
    SetNoiseLevel,
    Steer,
    TransferAttention,
    from_json,
)
from vdinterp.sweep import Case, Inputs, Trial

MODEL = tiny_model()
Z = ("z", 0)
NAME = "blocks.0.attn.hook_z"
STORED = torch.ones(2, 18, 2, 12)
FLAGS = [True, False]
OWN = torch.eye(18, dtype=torch.bool)


# Masks


@torch.no_grad()
def test_a_mask_may_be_a_list_or_an_array() -> None:
    mask = OWN.clone()
    mask[:, :6] = True
    with MODEL.intervene(MaskAttention(mask)):
        wanted = MODEL(**inputs(MODEL))
    for same in (mask.tolist(), mask.numpy()):
        with MODEL.intervene(MaskAttention(same)):
            assert torch.equal(MODEL(**inputs(MODEL)), wanted)
    assert not torch.equal(MODEL(**inputs(MODEL)), wanted)


ADDED = torch.zeros(18, 18).masked_fill(~OWN, -math.inf)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskAttention(ADDED), r"allow is torch.float32 \[18, 18\]: a mask is boolean.*scores == 0"),
        (lambda: MaskAttention(ADDED.tolist()), "a mask is boolean"),
        (lambda: MaskAttention(OWN.int()), "a mask is boolean"),
        (lambda: MaskAttention(True), "a mask is boolean"),
        (lambda: MaskAttention(1.0), "a mask is boolean"),
        (lambda: MaskAttention([[True], [True, False]]), r"a boolean \[query key\]"),
        (lambda: MaskAttention(OWN[:4]), r"\[4, 18\]"),
        (lambda: MaskAttention(OWN[None]), r"\[1, 18, 18\]"),
        (lambda: MaskAttention(OWN & (torch.arange(18) != 3)), "leaves query 3 without any key"),
        (lambda: MaskAttention(torch.ones(4, 4).bool()), r"The mask is \[4, 4\]; a clip has 18 tokens"),
        (lambda: MaskAttention("own_frame", cut=([0], [1])), "give one of them"),
        (lambda: MaskAttention(cut=([True], [2])), "booleans are no indices"),
        (lambda: MaskAttention(cut=(None, [2])), "name the query frames"),
        (lambda: Freeze(("mask", 0), 0.0), "is a boolean mask"),
        (lambda: Freeze(("mask", 0), ADDED), "is a boolean mask"),
        (lambda: Patch(("mask", 0), {"blocks.0.attn.hook_mask": ADDED[None, None]}), "is a boolean mask"),
        (lambda: Ablate(("mask", 0)), "is a boolean mask"),
        (lambda: Ablate(("mask", 0), "scaled", factor=0.5), "is a boolean mask"),
        (lambda: Steer(("mask", 0), torch.ones(18)), "is a boolean mask"),
    ],
)
def test_masks_that_would_be_taken_for_another(make: Any, message: str) -> None:
    before = [("hook_patch_embed", lambda x, hook: pytest.fail("it was accepted"))]
    with pytest.raises(ValueError, match=message), MODEL.intervene(make()):
        MODEL.run_with_hooks(**inputs(MODEL), fwd_hooks=before)


def test_a_mask_of_another_size_is_refused_before_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, two_frames = tiny_model(), MaskAttention(OWN[:12, :12])
    monkeypatch.setattr(model.blocks[0], "forward", lambda *_: pytest.fail("a block ran"))
    with pytest.raises(ValueError, match=r"^The mask is \[12, 12\]; a clip has 18 tokens"), model.intervene(two_frames):
        model(**inputs(model))
    pipe = small_pipe(d_action=0)
    monkeypatch.setattr(pipe.model, "forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="a clip has 24 tokens"):
        pipe.sample(CONTEXT, steps=4, interventions=[two_frames])
    trials = [Trial(interventions=(two_frames,), label={"head": 1})]
    for denoiser in (pipe, pipe.model):
        runs = {"base": Inputs(noisy=CLIP[:, :4], noise_levels=torch.full((1, 4), 500))}
        with pytest.raises(ValueError, match=r"^head 1: The mask is \[12, 12\]; a clip has 24 tokens"):
            vd.sweep.run(denoiser, [Case(runs=runs, base="base")], trials, {"r": Judge(recovered)}, **QUIET)


@torch.no_grad()
def test_a_mask_fits_the_clips_that_it_meets() -> None:
    two_frames = MaskAttention(OWN[:12, :12])
    with MODEL.intervene(two_frames):
        assert MODEL(**inputs(MODEL, n_frames=2)).isfinite().all()
    limited = MaskAttention(OWN[:12, :12], steps=[0])
    with MODEL.hook_ctx(step=1), pytest.warns(UserWarning, match="never acted"), MODEL.intervene(limited):
        assert torch.equal(MODEL(**inputs(MODEL)), MODEL(**inputs(MODEL)))


def test_layers_in_which_a_mask_forbids_nothing() -> None:
    model = tiny_model("space_time")
    with pytest.raises(ValueError, match=r"forbids nothing that the layers \[0\] do"):
        MaskAttention("own_frame", layers=[0, 1]).hooks(model)
    assert MaskAttention("own_frame").hooks(model)


# Fields


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablate(layer=3), r"^Ablate has no field 'layer'; the site says the layer: site=\('z', 3\)"),
        (lambda: Ablate("z", head=[1]), r"^Ablate has no field 'head'; did you mean 'heads'\?$"),
        (lambda: Ablate("z", zzz=1), "^Ablate has no field 'zzz'; it has site, mode, .*subspace$"),
        (lambda: Ablate(), "^Ablate needs site=; other fields are mode, .*subspace$"),
        (lambda: Ablate("z", "zero", None, None, 3), r"takes 4 fields without their names \(site, mode, .*, got 5; "),
        (lambda: Ablate("z", site="q"), "^Ablate: site is given twice"),
        (lambda: Custom(), "^Custom needs site=, function=; "),
        (lambda: Steer("z", steps=[1]), "^Steer needs direction=; "),
        (lambda: MaskAttention(alow="own_frame"), "^MaskAttention has no field 'alow'; did you mean 'allow'"),
        (lambda: MaskAttention("own_frame", layer=[2]), "^MaskAttention has no field 'layer'; did you mean 'layers'"),
        (lambda: SetNoiseLevel(levels=3), "^SetNoiseLevel has no field 'levels'; did you mean 'level'"),
        (lambda: Mine(site="z"), "^Mine has no field 'site'; it has where, steps, noise_levels$"),
    ],
)  # fmt: skip
def test_fields_that_a_kind_does_not_have_or_that_are_missing(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@dataclass(frozen=True)
class Mine(Intervention):
    """A kind of a user's."""

    where: str

    def __post_init__(self) -> None:
        if self.where == "nowhere":
            raise TypeError("of its own")

    def hooks(self, model: Any) -> list[Any]:
        return []


def test_other_errors_of_a_kind_and_its_signature_stay_as_they_are() -> None:
    with pytest.raises(TypeError, match="of its own"):
        Mine("nowhere")
    with pytest.raises(TypeError, match="abstract"):
        Intervention()  # type: ignore[abstract]
    assert list(inspect.signature(Mine).parameters) == ["where", "steps", "noise_levels"]
    assert copy.deepcopy(Mine("z")) == Mine("z")


# Booleans, values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda f=f: Ablate("z", **{f: FLAGS}), "booleans are no indices") for f in
          ("heads", "frames", "rows", "cols", "tokens", "channels", "steps")],
        (lambda: MaskAttention("own_frame", layers=FLAGS), "booleans are no indices"),
        (lambda: MaskAttention("own_frame", heads=FLAGS), "booleans are no indices"),
        (lambda: RotateRope("row", layers=FLAGS), "booleans are no indices"),
        (lambda: RotateRope("row", seed=True), "seed must be"),
        (lambda: TransferAttention({}, heads=FLAGS), "booleans are no indices"),
        (lambda: SetNoiseLevel(3, frames=FLAGS), "booleans are no indices"),
        (lambda: SetCondition(None, frames=FLAGS), "booleans are no indices"),
        (lambda: SetCondition(torch.ones(3, dtype=torch.complex64)), "real numbers"),
        (lambda: Ablate(("z", True)), "give a hook name"),
        (lambda: Ablate(None), "give a hook name"),
        (lambda: Ablate([]), "give a hook name"),
        (lambda: Ablate("z", steps=[]), "one or more"),
        (lambda: Ablate("z", steps="01"), "give a list"),
        (lambda: Ablate("z", steps=[1.9]), "whole numbers"),
        (lambda: Freeze("z", math.nan), "a number or a tensor, finite"),
        (lambda: Freeze("z", math.inf), "a number or a tensor, finite"),
        (lambda: Freeze("z", 10**400), "a number or a tensor, finite"),
        (lambda: Freeze("z", True), "is torch.bool: activations .* are floating point"),
        (lambda: Freeze("z", torch.ones(12, dtype=torch.complex64)), "is torch.complex64"),
        (lambda: Freeze("z", torch.full((12,), math.nan)), "holds NaN or infinity"),
        (lambda: Freeze("z", torch.full((12,), -math.inf)), "holds NaN or infinity"),
        (lambda: Freeze("attn_scores", torch.full((18,), math.nan)), "holds NaN"),
        (lambda: Patch(Z, {NAME: STORED * math.nan}), "The stored .* holds NaN"),
        (lambda: Patch(Z, {NAME: STORED[:0]}), "holds nothing, so give some clips"),
        (lambda: Patch(Z, {NAME: STORED.long()}), r"use value.float\(\)"),
        (lambda: Ablate(Z, "mean", {NAME: STORED[:0]}), "holds nothing"),
        (lambda: Ablate(Z, "mean", {NAME: STORED * math.inf}), "holds NaN or infinity"),
        (lambda: Ablate(Z, "resample", {NAME: STORED * math.nan}), "holds NaN"),
        (lambda: Custom("z", None), "is no function"),
    ],
)  # fmt: skip
def test_refused_before_anything_runs(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message), MODEL.intervene(make()):
        pytest.fail("it was accepted")


@torch.no_grad()
def test_values_that_are_what_they_say() -> None:
    for one in (Freeze("z", 1), Freeze("z", torch.tensor(1)), Freeze("attn_scores", ADDED), Freeze(("mask", 0), True)):
        with MODEL.intervene(one):
            assert MODEL(**inputs(MODEL)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64, torch.bool])
def test_a_function_returns_the_dtype_that_it_was_given(dtype: torch.dtype) -> None:
    refused = pytest.raises(ValueError, match=rf"Custom: the function gave {dtype} .* return result.to\(activation\)")
    with refused, MODEL.intervene(Custom(Z, lambda z, hook: z.to(dtype))):
        MODEL(**inputs(MODEL))


# Interventions that never act


PIPE = small_pipe(d_action=0)
CONTEXT = torch.randn(1, 1, 1, 4, 6, generator=torch.Generator().manual_seed(0))
CLIP = torch.randn(1, 7, 1, 4, 6, generator=torch.Generator().manual_seed(1))
WAYS = {
    "sample": lambda pipe, **more: pipe.sample(CONTEXT, steps=4, **more),
    "iterate": lambda pipe, **more: pipe.iterate(CONTEXT, steps=4, **more),
    "rollout": lambda pipe, **more: pipe.rollout(CONTEXT, 7, steps=4, **more),
    "interpolate": lambda pipe, **more: pipe.interpolate(CLIP, steps=4, **more),
}
NEVER = [
    (
        {"noise_levels": [0.6]},
        {},
        r"never acts: no frame is at the noise levels 0.6; they are at 0, 0.25, 0.5, 0.75, 1 ",
    ),
    ({"noise_levels": Between(0.6, 0.7)}, {}, "at the noise levels 0.6 to 0.7; they are at 0, 0.25"),
    ({"noise_levels": [1], "steps": [1]}, {"pad": False}, "at the noise levels 1 at the steps 1"),
    ({"noise_levels": [0], "frames": [3]}, {"n_frames": 4}, r"none of the frames \[3\] is at the noise levels 0"),
    ({"noise_levels": [0], "tokens": [20]}, {"n_frames": 4}, r"none of the tokens \[20\] is"),
    ({"steps": [4]}, {}, "names the steps"),
    ({"steps": [1]}, {"at_steps": [0]}, "none of its steps 1 happens here"),
    ({}, {"at_steps": [9]}, "names the steps"),
    ({}, {"at_steps": []}, "one or more"),
    ({}, {"at_steps": "01"}, "give a list"),
    ({}, {"at_steps": [1.9]}, "whole numbers"),
    ({}, {"at_steps": [True]}, "booleans are no indices"),
    ({}, {"at_steps": range(20, 30)}, "names the steps"),
]


@pytest.fixture
def untouchable(monkeypatch: pytest.MonkeyPatch) -> vd.VideoDiffusion:
    monkeypatch.setattr(PIPE.model, "forward", lambda *_, **__: pytest.fail("the model ran"))
    return PIPE


@pytest.mark.parametrize(
    ("way", "limits", "options", "message"),
    [("sample", *each) for each in NEVER] + [(way, *NEVER[case]) for way in list(WAYS)[1:] for case in (0, 5, 6, 8)],
)
def test_never_acting_is_said_first(
    untouchable: vd.VideoDiffusion, way: str, limits: dict, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        WAYS[way](untouchable, interventions=[Ablate("z", **limits)], **options)


def test_what_acts_in_one_window_is_enough() -> None:
    """Generated history at a level of its own is there from the second window on."""
    stabilised = vd.HistoryGuidance.stabilized_conditional(0.02)
    more = {"guidance": stabilised, "interventions": [Ablate("z", noise_levels=[0.02])]}
    plain = PIPE.rollout(CONTEXT, 7, steps=2, guidance=stabilised).latents
    acted = PIPE.rollout(CONTEXT, 7, steps=2, **more).latents
    assert torch.equal(plain[:, :4], acted[:, :4]) and not torch.equal(plain, acted)
    with pytest.raises(ValueError, match="never acts"):
        PIPE.sample(CONTEXT, steps=2, **more)


def test_later_windows_are_checked_first(untouchable: vd.VideoDiffusion) -> None:
    """Of 5 frames the second window has 3, and fewer steps in an autoregressive schedule."""
    options: dict[str, Any] = {"matrix": "autoregressive", "steps": 2, "at_steps": [5], "overlap": 2}
    with pytest.raises(ValueError, match="this run has steps 0 to"):
        untouchable.rollout(CONTEXT, 5, **options)


@torch.no_grad()
def test_single_passes_warn_at_the_end() -> None:
    levels, noisy = torch.tensor([[0, 0.1, 0.9, 0.9]]), CLIP[:, :4]
    both = PIPE.model.intervene(Ablate("z", noise_levels=[0.5]), Ablate("z", noise_levels=[0.1]))
    with pytest.warns(UserWarning, match=r"Ablate\(noise_levels=\[0.5\]\) never acted"), both:
        PIPE.denoise(noisy, levels)
    with PIPE.model.intervene(Ablate("z", noise_levels=[0.9])):
        PIPE.denoise(noisy, levels.clamp(max=0.1))  # not here
        PIPE.denoise(noisy, levels)


@pytest.mark.parametrize(
    ("change", "one", "message"),
    [
        (
            {},
            Ablate("z", noise_levels=[0.3]),
            "head 1: Ablate never acts: no frame is at the noise levels 0.3; they are at 0, 0.6",
        ),
        ({}, Ablate("z", steps=[0]), "head 1: Ablate: steps= needs a sampler"),
        ({"noise_levels": None, "steps": 2}, Ablate("z", steps=[2]), "head 1: Ablate never acts: none of its steps 2"),
        ({"noise_levels": None, "steps": 2}, Ablate("z", noise_levels=[0.3]), "they are at 0, 0.5, 1"),
    ],
)
def test_trials_that_never_act(change: dict, one: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Contrast(**{**given(n=2), **change})
    cases = pair.cases()
    monkeypatch.setattr(pair.model, "forward", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=message):
        vd.sweep.run(
            pair.denoiser, cases, [Trial(interventions=(one,), label={"head": 1})], {"r": Judge(recovered)}, **QUIET
        )


def test_a_trial_that_acts_in_one_case_is_enough() -> None:
    pair = Contrast(**{**given(n=2), "noise_levels": (0.3, 0.6)})
    trial = Trial(interventions=(Ablate("z", noise_levels=[0.6]),))
    found = vd.sweep.run(pair.denoiser, pair.cases(), [trial], {"r": Judge(recovered)}, **QUIET).table
    changed = found.groupby("level")["value"].apply(lambda values: values.abs().max())
    assert changed[0.3] == 0 and changed[0.6] > 0


def test_clips_that_are_cut_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    from vdinterp.data.clips import say_cut

    say_cut.cache_clear()
    with caplog.at_level(logging.WARNING, "vdinterp"):
        for _ in range(2):
            say_cut(12, 8, "tiny")
        say_cut(8, 8, "tiny")
    assert caplog.messages == ["clips have 12 frames, tiny sees 8: only the first 8 are used"]


# As JSON


def written(field: str) -> str:
    return f'[{{"kind": "Steer", "site": "z", "direction": {field}}}]'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (written('{"tensor": "", "dtype": "float32", "shape": [96]}'), r"float32 tensor \[96\] has 384 bytes, not 0"),
        (written('{"tensor": "AAAA", "dtype": "float32", "shape": [1]}'), "has 4 bytes, not 3"),
        (written('{"tensor": "AAAAAAAAAAA=", "dtype": "float32", "shape": [1]}'), "has 4 bytes, not 8"),
        (written('{"tensor": "", "dtype": "float32", "shape": [1099511627776, 1099511627776]}'), "bytes, not 0"),
        (written('{"tensor": "", "dtype": "float8", "shape": [1]}'), "there is no dtype 'float8'; there are float64"),
        (written('{"tensor": "AAAAAA==", "dtype": "float32", "shape": [-1]}'), "a size of a tensor"),
        (written('{"tensor": "AAAAAA==", "dtype": "float32", "shape": [true]}'), "a size of a tensor"),
        (written('{"tensor": "AAAAAA==", "dtype": "float32", "shape": 1}'), "shape is a list"),
        (written('{"tensor": 5, "dtype": "float32", "shape": [1]}'), "data are text"),
        (written('{"tensor": "Ag==", "dtype": "bool", "shape": [1]}'), "0 and 1 only"),
        ('[{"kind": "Ablate", "site": "z", "steps": {"range": [0, 1000000000000, 1]}}]', "a range's parts"),
        ('[{"kind": "Ablate", "site": "z", "steps": {"range": [0, 5, 0]}}]', "not written as to_json"),
        ('[{"kind": "Ablate", "site": "z", "noise_levels": {"between": [0]}}]', "not written as to_json"),
        ('[{"kind": "Ablate", "site": "z", "noise_levels": {"between": [0, 900]}}]', "shares of noise"),
        ('[{"kind": "Ablate", "site": "z", "heads": {"range": [true, 5, 1]}}]', "a range's parts"),
        ('[{"kind": "Ablate", "site": "z", "heads": {"set": "01"}}]', "written as a list, not str"),
        ('[{"kind": "Ablate", "site": "z", "heads": [true]}]', "booleans are no indices"),
        ('[{"kind": "Ablate", "site": "z", "heads": [0], "heads": [1]}]', "'heads' is given twice"),
        ('[{"kind": "Ablate", "site": 5}]', "give a hook name"),
        ('[{"kind": "Freeze", "site": "z", "value": NaN}]', "NaN is no JSON"),
        ('[{"kind": "Freeze", "site": "z", "value": {"float": "nan"}}]', "finite"),
        ('[{"kind": "Freeze", "site": "z", "value": ' + "9" * 5000 + "}]", "These are no interventions"),
        ("[" * 100_000, "These are no interventions"),
        ('[{"kind": "Ablate", "site": "z", "mode": ["zero"]}]', "Unknown ablation mode"),
        ('[{"kind": "MaskAttention", "allow": [[1, 0], [0, 1]]}]', "a mask is boolean"),
    ],
)  # fmt: skip
def test_json_that_to_json_does_not_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_json_is_a_text() -> None:
    with pytest.raises(ValueError, match="read from a text, see to_json; got bytes"):
        from_json(b"[]")  # type: ignore[arg-type]
