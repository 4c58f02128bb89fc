"""The pipeline and the bare network: passes, sampling, encoding, noise."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import values, world
from fuzz.doors.table import Target, cases
from fuzz.harness import Case


def _passed(**more: Any) -> dict[str, Any]:
    return {"noisy": world.pair()[0], "noise_levels": world.levels(), "cond": world.action(), **more}


def _sampled(**more: Any) -> dict[str, Any]:
    context = world.pair()[0][:, :2]
    return {"context": context, "n_frames": 4, "steps": 2, "cond": world.action(), "seed": 0, **more}


def _short(value: Any) -> bool:
    """A longer clip than the model takes is decoded all the same."""
    return not isinstance(value, torch.Tensor) or value.ndim != 5 or value.shape[1] <= 4


def calls() -> st.SearchStrategy[Case]:
    pipe, model = world.pipe(), world.pipe().model
    noisy, k = world.pair()[0], world.k()
    bare = {
        "latents": values.latents(noisy),
        "timestep": values.k(k),
        "cond": values.TENSORS.filter(lambda v: v is not None),
    }
    sampling = {
        "context": values.latents(noisy[:, :2]).filter(lambda v: v is not None),
        "n_frames": values.POSITIVE_COUNTS.filter(lambda v: v is not None),
        "steps": values.POSITIVE_COUNTS,
        "seed": values.SEEDS,
        "eta": values.FRACTIONS,
        "at_steps": values.of([9], "01", [1.9], [True], [-1], [], [None], 5),
        "matrix": values.CHOICES,
        "interventions": values.of(
            "z",
            [5],
            vd.Ablate("z"),
            [vd.Ablate("z", noise_levels=[0.123])],
            [vd.Ablate("z", steps=[77])],
            [vd.Ablate("z", heads=[9])],
        ),
        "record": values.HOOK_NAMES.filter(lambda v: v is not None),
        "cond": values.TENSORS.filter(lambda v: v is not None),
        "guidance": values.of("cfg", 5.0, object()),
    }
    with_names = {"names": values.HOOK_NAMES.filter(lambda v: v is not None)}
    return cases(
        [
            Target(
                "denoise",
                pipe.denoise,
                _passed,
                {"noisy": values.latents(noisy), "noise_levels": values.levels(world.levels()), "cond": bare["cond"]},
            ),
            Target(
                "model",
                model,
                lambda: {"latents": noisy, "timestep": k, "cond": world.action()},
                bare
                | {
                    "start_at_layer": values.COUNTS.filter(lambda v: v is not None and v != -1),
                    "stop_at_layer": values.of(1.5, "1", 99, [1], True),
                },
            ),
            Target(
                "run_with_cache",
                model.run_with_cache,
                lambda: {"latents": noisy, "timestep": k, "cond": world.action()},
                bare | with_names,
            ),
            Target(
                "run_with_stats",
                model.run_with_stats,
                lambda: {"latents": noisy, "timestep": k, "stats": ["frame_mass"]},
                {"stats": values.of("z", [], None, ["nonsense"], 5), "partition": values.of("rows", 5, None, [1, 2])},
            ),
            Target("sample", pipe.sample, _sampled, sampling),
            Target(
                "rollout",
                pipe.rollout,
                lambda: _sampled(n_frames=6, cond=None),
                {"context": values.latents(noisy[:, :2]), "n_frames": values.POSITIVE_COUNTS},
            ),
            Target(
                "interpolate",
                pipe.interpolate,
                lambda: {"latents": noisy, "steps": 2, "known": [True, False, False, True], "cond": world.action()},
                {"latents": values.latents(noisy), "known": values.of("x", [True], [2, 0, 0, 1], 5, [True] * 9)},
            ),
            Target("encode", pipe.encode, lambda: {"video": noisy}, {"video": values.latents(noisy)}),
            Target(
                "decode", pipe.decode, lambda: {"latents": noisy}, {"latents": values.latents(noisy).filter(_short)}
            ),
            Target(
                "add_noise",
                pipe.add_noise,
                lambda: {"latents": noisy, "noise_levels": world.levels(), "noise": torch.randn_like(noisy)},
                {
                    "latents": values.latents(noisy),
                    "noise_levels": values.levels(world.levels()),
                    "noise": values.latents(noisy),
                },
            ),
            Target(
                "VideoDiffusion",
                vd.VideoDiffusion,
                lambda: {"model": model, "vae": None, "diffusion": vd.DiffusionConfig()},
                {"model": values.of(None, "tiny", torch.nn.Linear(2, 2), 5), "diffusion": values.of(None, "v", {}, 5)},
            ),
            Target("to", pipe.to, lambda: {"device": "cpu"}, {"device": values.of("cuda:99", "nonsense", 3.5)}),
        ]
    )
