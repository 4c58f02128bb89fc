"""What makes clips, loads models, reads and writes files."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import values, world
from fuzz.doors.table import Target, cases
from fuzz.harness import Case


def calls() -> st.SearchStrategy[Case]:
    film, video = world.film(), torch.rand(3, 3, 8, 8)
    counts = values.POSITIVE_COUNTS
    return cases(
        [
            Target(
                "make_clips",
                vd.data.make_clips,
                lambda: {"kind": "one_off", "n": 2, "lag": 5},
                {
                    "kind": values.CHOICES,
                    "n": counts,
                    "seed": values.SEEDS,
                    "lag": values.of(0, -1, 99, "5", 2.5, values.NAN, [5], True),
                    "n_frames": values.of(0, -1, "5", 2.5, values.NAN, 10**9, True),
                    "filler": values.of(-1, "x", values.NAN, 7),
                },
            ),
            Target(
                "make_clips loop",
                vd.data.make_clips,
                lambda: {"kind": "loop", "n": 2},
                {"period": values.of(0, -1, 99, "5", 2.5, values.NAN, True), "n": counts, "nonsense": values.of(1)},
            ),
            Target(
                "make_clips occlusion",
                vd.data.make_clips,
                lambda: {"kind": "occlusion", "n": 2},
                {
                    "n": counts,
                    "seed": values.SEEDS,
                    "n_frames": values.of(0, -1, "5", 2.5, 10**9),
                    "n_objects": values.of(0, -1, "5", 2.5, 10**9),
                },
            ),
            Target(
                "sample_clips",
                vd.data.sample_clips,
                lambda: {"kind": "crafter", "n": 2},
                {
                    "kind": values.CHOICES,
                    "n": counts.filter(lambda v: v is not None),
                    "n_frames": values.of(0, -1, "5", 2.5, 10**9, True),
                },
            ),
            Target(
                "Clips",
                vd.data.Clips,
                lambda: {"kind": "x", "video": torch.rand(2, 3, 1, 4, 4)},
                {
                    "video": values.of(None, "x", torch.rand(2, 3), [1.0]),
                    "action": values.of(torch.rand(5, 3, 2), "x", 5),
                },
            ),
            Target(
                "clips[...]",
                world.clips().__getitem__,
                lambda: {"index": 0},
                {"index": values.of(99, -99, "0", 1.5, None, [[]], [99], [1.5], ["a"])},
            ),
            Target(
                "read_video",
                vd.data.read_video,
                lambda: {"path": film},
                {
                    "path": values.FOLDERS,
                    "n_frames": counts.filter(lambda v: v is not None),
                    "stride": counts,
                    "start": values.COUNTS,
                    "size": values.of((0, 1), (1,), "x", 5, (1.5, 2), (True, 1), (10**9, 1)),
                    "channels": values.of(0, 4, "3", None, 2, True),
                    "fps": values.of(0, -1, values.NAN, "8", 10**9, True),
                },
            ),
            Target(
                "read_clips",
                vd.data.read_clips,
                lambda: {"path": film, "n": 1, "n_frames": 4, "size": (8, 8)},
                {
                    "path": values.FOLDERS,
                    "n": counts,
                    "n_frames": counts,
                    "stride": counts,
                    "fps": values.of(0, -1, values.NAN, "8", 10**9),
                },
            ),
            Target(
                "write_video",
                vd.data.write_video,
                lambda: {"path": world.FOLDER / "written.mp4", "video": video},
                {
                    "path": values.FOLDERS | values.of(world.FOLDER / "x.avi", video),
                    "video": values.of(None, video[0], video[:0], video[:, :2], video * values.NAN, "x", 5),
                    "fps": values.of(0, -1, values.NAN, "8", None),
                    "enlarge": values.COUNTS,
                },
            ),
            Target(
                "load",
                vd.load,
                lambda: {"name": str(world.bundle())},
                {
                    "name": values.of(
                        "",
                        None,
                        5,
                        "nonsense",
                        "models/mine",
                        "./models/mine",
                        "/nowhere",
                        "a/b/c",
                        [],
                        b"x",
                        "tiny-inductoin",
                        str(film),
                    ),
                    "checkpoint": values.of(-1, 17, "last", 1.5, True),
                    "family": values.CHOICES.filter(lambda v: v is not None),
                    "device": values.of("cuda:99", "nonsense", 3.5),
                    "config": values.of({}, "nowhere.json", 5),
                    "diffusion": values.of("v", 5, {}),
                    "vae": values.of("vae", 5),
                    "latent_stats": values.of("x", 5, (0.5, 0.5)),
                },
            ),
            Target(
                "list_checkpoints",
                vd.list_checkpoints,
                lambda: {"name": "tiny-induction"},
                {"name": values.of("nonsense", None, 5, "", [])},
            ),
            Target(
                "save_bundle",
                vd.pipeline.save_bundle,
                lambda: {"out_dir": world.FOLDER / "saved", "pipe": world.pipe()},
                {
                    "pipe": values.of(None, "x", world.pipe().model, world.FOLDER),
                    "out_dir": values.FOLDERS | values.of(world.pipe()),
                },
            ),
            Target(
                "report.write",
                vd.report.write,
                lambda: {"content": world.result(), "folder": world.FOLDER / "report"},
                {
                    "content": values.of(None, "x", 5, [], [5], world.result().table),
                    "folder": values.FOLDERS | values.of(film),
                },
            ),
            Target(
                "Result.save",
                world.result().save,
                lambda: {"folder": world.FOLDER / "kept"},
                {"folder": values.FOLDERS | values.of(film)},
            ),
            Target(
                "Result.load",
                vd.Result.load,
                lambda: {"folder": world.saved_result()},
                {"folder": values.FOLDERS | values.of(film, world.FOLDER)},
            ),
            Target(
                "TokenGrid",
                vd.TokenGrid,
                lambda: {"n_frames": 2, "n_rows": 2, "n_cols": 2},
                {"n_frames": counts, "n_rows": counts, "n_cols": counts},
            ),
            Target(
                "DiffusionConfig",
                vd.DiffusionConfig,
                dict,
                {
                    "objective": values.CHOICES,
                    "schedule": values.CHOICES,
                    "n_levels": values.of(0, -1, 1.5, "9", None, True, 10**12),
                    "clip": values.NUMBERS,
                    "shift": values.of(0.0, -1.0, values.NAN, "1", None),
                },
            ),
            Target(
                "ClassifierFreeGuidance", vd.ClassifierFreeGuidance, lambda: {"weight": 2.0}, {"weight": values.NUMBERS}
            ),
            Target(
                "ClassifierGuidance",
                vd.ClassifierGuidance,
                lambda: {"log_prob": print},
                {"log_prob": values.of(None, 5, "x"), "scale": values.NUMBERS},
            ),
        ]
    )
