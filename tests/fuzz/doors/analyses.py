"""Analyses, patching, circuits, probes, the search, studies."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import values, world
from fuzz.doors.table import Target, cases
from fuzz.harness import Case


def _contrast(**more: Any) -> dict[str, Any]:
    clean, corrupted = world.pair()
    return {
        "model": world.pipe(),
        "clean": clean,
        "corrupted": corrupted,
        "noise_levels": 0.6,
        "cond": world.action(),
        **more,
    }


def calls() -> st.SearchStrategy[Case]:
    pipe, noised = world.pipe(), world.noised()
    strangers = values.of(pipe, pipe.model, world.clips(), None, "tiny", 5)
    contrast = {
        "model": values.of(None, "tiny", 5, world.clips()),
        "clean": values.latents(world.pair()[0]),
        "corrupted": values.latents(world.pair()[0]),
        "noise_levels": values.SHARE,
        "seed": values.SEEDS,
        "batch": values.POSITIVE_COUNTS,
        "metric": values.of("nonsense", None, 5, lambda: 1),
        "direction": values.CHOICES,
    }
    quiet = {"sweep_options": {"progress": False}}
    sites = {"site": values.HOOK_NAMES, "over": values.of("nonsense", [], ["head", "head"], ["colour"], None, 5)}
    a = vd.analysis
    on_noised = [
        Target(name, getattr(a, name), lambda: {"noised": noised}, {"noised": strangers})
        for name in (
            "frame_mass",
            "head_table",
            "chunk_mass",
            "displacement_kernel",
            "sinks",
            "spatial_temporal",
            "lens_curve",
            "rope_reliance",
            "massive_activations",
            "patch_crossing",
            "step_redundancy",
            "direct_effect",
            "head_consensus",
        )
    ]
    cached = world.cache()
    return cases(
        [
            *on_noised,
            Target(
                "NoisedClips",
                vd.NoisedClips,
                lambda: {"pipe": pipe, "clips": world.clips()},
                {
                    "pipe": values.of(None, "tiny", pipe.model, 5),
                    "clips": values.of(None, "one_off", 5),
                    "noise_levels": values.SHARES,
                    "n_context": values.of(-1, 4, 99, 1.5, "2", True, values.NAN),
                    "seed": values.SEEDS,
                    "batch": values.POSITIVE_COUNTS.filter(lambda v: not (isinstance(v, int) and v > 10**9)),
                },
            ),
            Target(
                "chunk_mass",
                a.chunk_mass,
                lambda: {"noised": noised},
                {"n_first": values.COUNTS, "n_current": values.COUNTS},
            ),
            Target(
                "activation_patch",
                vd.activation_patch,
                lambda: _contrast(**quiet),
                contrast
                | sites
                | {
                    "regions": values.of("x", {"a": []}, {"a": [999]}, 5),
                    "steps": values.POSITIVE_COUNTS.filter(lambda v: v is not None),
                },
            ),
            Target(
                "attribution_patch",
                vd.attribution_patch,
                lambda: _contrast(sample=2, **quiet),
                contrast
                | sites
                | {"method": values.CHOICES, "n_steps": values.POSITIVE_COUNTS, "sample": values.COUNTS},
            ),
            Target(
                "path_patch",
                vd.path_patch,
                lambda: _contrast(senders=["embed"], **quiet),
                contrast
                | {
                    "senders": values.of("nonsense", [], ["9.9"], None, 5, [5]),
                    "receivers": values.of("nonsense", [], ["9.9.q"], None, 5),
                },
            ),
            Target("edge_attribution", vd.edge_attribution, _contrast, contrast | {"n_steps": values.POSITIVE_COUNTS}),
            Target(
                "direct_attribution",
                vd.direct_attribution,
                lambda: {"model": pipe, "cache": cached},
                {
                    "model": values.of(None, "tiny", 5),
                    "cache": values.of(None, {}, "clean", 5),
                    "frames": values.INDICES,
                    "direction": values.TENSORS.filter(lambda v: v is not None),
                },
            ),
            Target(
                "lens",
                vd.lens,
                lambda: {"model": pipe, "cache": cached},
                {
                    "model": values.of(None, "tiny", 5),
                    "cache": values.of(None, {}, "clean", 5),
                    "frames": values.INDICES,
                    "tuned": values.of("tuned", 5),
                },
            ),
            Target(
                "tuned_lens",
                vd.tuned_lens,
                lambda: {"noised": noised, "steps": 1},
                {"noised": strangers, "steps": values.POSITIVE_COUNTS, "lr": values.FRACTIONS, "seed": values.SEEDS},
            ),
            Target(
                "circuits.ov",
                vd.circuits.ov,
                lambda: {"model": pipe.model, "layer": 0, "head": 0, "noise_level": 0.7},
                {
                    "model": values.of(None, "tiny", 5),
                    "layer": values.of(99, 1.5, "0", True, None),
                    "head": values.of(99, 1.5, "0", True, None),
                    "noise_level": values.of(700, 1.5, values.NAN, "700", None, True, -7),
                },
            ),
            Target(
                "circuits.copying",
                vd.circuits.copying,
                lambda: {"pipe": pipe, "noise_level": 0.7},
                {
                    "pipe": values.of(None, "tiny", pipe.model),
                    "noise_level": values.of(700, 1.5, values.NAN, "700", None, True, -7),
                },
            ),
            Target(
                "circuits.composition",
                vd.circuits.composition,
                lambda: {"model": pipe.model, "noise_level": 0.7},
                {
                    "model": values.of(None, "tiny", 5),
                    "parts": values.of([], ["x"], "x", 5),
                    "noise_level": values.of(700, 1.5, "x", True),
                },
            ),
            Target(
                "probes.fit",
                vd.probes.fit,
                lambda: {"noised": noised, "labels": torch.tensor([[0, 1, 0, 1]] * 4)},
                {
                    "noised": strangers,
                    "labels": values.TENSORS,
                    "site": values.HOOK_NAMES,
                    "folds": values.POSITIVE_COUNTS,
                    "layers": values.INDICES,
                    "seed": values.SEEDS,
                },
            ),
            Target(
                "top_patches",
                vd.neurons.top_patches,
                lambda: {"noised": noised},
                {
                    "noised": strangers,
                    "n_patches": values.POSITIVE_COUNTS,
                    "layers": values.INDICES,
                    "labels": values.TENSORS.filter(lambda v: v is not None),
                },
            ),
            Target(
                "find_induction",
                vd.find_induction,
                lambda: {"pipe": pipe, "clips": world.clips(), "n_per_lag": 1, "progress": False},
                {
                    "pipe": values.of(None, "tiny", pipe.model),
                    "levels": values.SHARES,
                    "n_per_lag": values.POSITIVE_COUNTS,
                    "designs": values.of([], ["nonsense"], "x", None, 5),
                    "seed": values.SEEDS,
                    "batch": values.POSITIVE_COUNTS,
                },
            ),
            Target(
                "modulation_atlas",
                vd.modulation_atlas,
                lambda: {"model": pipe.model},
                {
                    "model": values.of(None, "tiny", 5),
                    "noise_levels": values.of([], "x", [500], [5000], [values.NAN]),
                },
            ),
            Target(
                "AttentionExplorer.of",
                vd.AttentionExplorer.of,
                lambda: {"noised": noised},
                {"noised": strangers, "clip": values.of(99, -99, 1.5, "0", None, True)},
            ),
            Target(
                "cache[...]",
                cached.__getitem__,
                lambda: {"key": "z"},
                {"key": values.HOOK_NAMES.filter(lambda v: not callable(v))},
            ),
            Target("decompose_resid", cached.decompose_resid, dict, {"layer": values.of(99, -99, 1.5, "0", [0])}),
            Target(
                "organisms.build",
                vd.organisms.build,
                lambda: {"kind": "duplicate"},
                {
                    "kind": values.CHOICES,
                    "seed": values.SEEDS,
                    "n_layers": values.of(0, -1, 1.5, "4", 10**7, True),
                    "n_heads": values.of(0, -1, 1.5, "4", 10**7, True),
                    "lag": values.of(0, -1, 1.5, "4", 10**7, True),
                },
            ),
            Target(
                "studies.run",
                vd.studies.run,
                lambda: {"name": "ablations", "pipe": pipe, "clips": world.clips(), "steps": 1},
                {
                    "name": values.CHOICES,
                    "pipe": values.of(None, "tiny", pipe.model),
                    "clips": values.of("x", 5, {"a": 1}),
                    "n_clips": values.POSITIVE_COUNTS.filter(lambda v: v is not None),
                    "n_context": values.of(-1, 99, 1.5, "2"),
                    "steps": values.POSITIVE_COUNTS.filter(lambda v: v is not None),
                    "levels": values.SHARES,
                    "seed": values.SEEDS,
                    "batch": values.POSITIVE_COUNTS.filter(lambda v: not (isinstance(v, int) and v > 10**9)),
                },
            ),
        ]
    )
