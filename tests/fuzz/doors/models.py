"""Files of weights and configurations."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vdinterp as vd
from fuzz import values, world
from fuzz.harness import Case
from vdinterp.models import BlockSpec, Rope, Sublayer, VideoDiTConfig

CASTS = (torch.int8, torch.int16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8)


def checkpoints() -> st.SearchStrategy[Case]:
    """A bundle whose weights, or the file they are in, are not what they should be."""

    @st.composite
    def draw(draw: Any) -> Case:
        how = draw(
            st.sampled_from(
                (_cast, _poison, _zero, _rename, _drop, _add, _reshape, _cut, _garble, _empty, _swap, _pickle)
            )
        )
        return how(random.Random(draw(st.integers(0, 10**6))))

    return draw() | _settings()


def _spoilt(name: str, change: Any) -> Any:
    def call() -> Any:
        folder = world.copy_of(world.bundle(), "bundle")
        change(folder)
        return vd.load(folder)

    return call


def _weights(change: Any) -> Any:
    def spoil(folder: Path) -> None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")

    return spoil


def _cast(rng: random.Random) -> Case:
    dtype = rng.choice(CASTS)
    whole = rng.random() < 0.5
    one = rng.random()

    def change(tensors: dict) -> dict:
        name = sorted(tensors)[int(one * len(tensors))]
        return {key: (t.float().to(dtype) if whole or key == name else t) for key, t in tensors.items()}

    return Case(f"weights as {dtype}, {'all' if whole else 'one'}", _spoilt("cast", _weights(change)))


def _poison(rng: random.Random) -> Case:
    value, one, where = rng.choice((values.NAN, values.INF, -values.INF)), rng.random(), rng.random()

    def change(tensors: dict) -> dict:
        name = sorted(tensors)[int(one * len(tensors))]
        flat = tensors[name].clone().flatten()
        flat[int(where * len(flat))] = value
        return tensors | {name: flat.reshape(tensors[name].shape)}

    return Case(f"{value} among the weights", _spoilt("poison", _weights(change)))


def _zero(rng: random.Random) -> Case:
    return Case("all weights zero", _spoilt("zero", _weights(lambda tensors: {k: t * 0 for k, t in tensors.items()})))


def _rename(rng: random.Random) -> Case:
    one = rng.random()

    def change(tensors: dict) -> dict:
        name = sorted(tensors)[int(one * len(tensors))]
        return {(key + "_x" if key == name else key): tensor for key, tensor in tensors.items()}

    return Case("a weight under another name", _spoilt("rename", _weights(change)))


def _drop(rng: random.Random) -> Case:
    one = rng.random()

    def change(tensors: dict) -> dict:
        name = sorted(tensors)[int(one * len(tensors))]
        return {key: tensor for key, tensor in tensors.items() if key != name}

    return Case("a weight is missing", _spoilt("drop", _weights(change)))


def _add(rng: random.Random) -> Case:
    return Case("an unknown weight", _spoilt("add", _weights(lambda tensors: tensors | {"nose": torch.ones(2)})))


def _reshape(rng: random.Random) -> Case:
    one = rng.random()

    def change(tensors: dict) -> dict:
        name = sorted(tensors)[int(one * len(tensors))]
        return tensors | {name: torch.cat([tensors[name], tensors[name]])}

    return Case("a weight of another shape", _spoilt("reshape", _weights(change)))


def _bytes(what: str, change: Any, file: str = "model.safetensors") -> Case:
    def spoil(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return Case(what, _spoilt(what, spoil))


def _cut(rng: random.Random) -> Case:
    share = rng.random() * 0.99
    return _bytes(
        "a file that breaks off",
        lambda data: data[: int(share * len(data))],
        rng.choice(("model.safetensors", "model.json")),
    )


def _garble(rng: random.Random) -> Case:
    def change(data: bytes) -> bytes:
        header = int.from_bytes(data[:8], "little") + 8
        spoilt = bytearray(data)
        for _ in range(8):
            spoilt[rng.randrange(min(header, len(data)))] = rng.randrange(256)
        return bytes(spoilt)

    return _bytes("a header with other bytes", change)


def _empty(rng: random.Random) -> Case:
    return _bytes("an empty file", lambda data: b"", rng.choice(("model.safetensors", "model.json")))


def _swap(rng: random.Random) -> Case:
    junk = rng.choice(
        (b"PK\x03\x04" + b"\0" * 100, b"\x80\x04." * 9, b"GGUF" + b"\0" * 64, b"{}", b"<html></html>", b"\xff" * 64)
    )
    return _bytes(f"{junk[:4]!r} for weights", lambda data: junk)


def _pickle(rng: random.Random) -> Case:
    def call() -> Any:
        path = world.FOLDER / "pickled.pt"
        torch.save(rng.choice(({"a": print}, [1, 2], torch.ones(3), {"state_dict": 5}, {})), path)
        return vd.load(
            path, family=rng.choice(("dfot", "oasis")), config=rng.choice(({}, {"d_model": 3}, {"n_layers": "x"}))
        )

    return Case("a checkpoint that holds something else", call)


def _settings() -> st.SearchStrategy[Case]:
    """model.json with a wrong value somewhere."""

    @st.composite
    def draw(draw: Any) -> Case:
        good = world.settings_of(world.bundle())
        places = [("config", key) for key in good["config"] if key != "model_name"]
        places += [("diffusion", key) for key in good["diffusion"]] + [(part, None) for part in good if part != "meta"]
        part, key = draw(st.sampled_from(places))
        value = draw(
            st.sampled_from(
                ("4", None, True, 1.5, -1, 0, 10**9, 2000000, [], {}, "nonsense", values.NAN, [[]], [1, "2"])
            )
        )
        now = good[part] if key is None else good[part][key]
        edited = json.loads(json.dumps(good))
        if key is None:
            edited[part] = value
        else:
            edited[part][key] = value
        wrong = not _plausible(now, value)

        def spoil(folder: Path) -> None:
            (folder / "model.json").write_text(json.dumps(edited))

        return Case(f"model.json {part}.{key} = {value!r} for {now!r}", _spoilt("settings", spoil), refused=wrong)

    return draw()


def _plausible(now: Any, value: Any) -> bool:
    """Whether a value may stand there: of the same type, or nothing where there may be nothing."""
    if value is None or now is None or value == now:
        return True
    if isinstance(now, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return value == value
    return type(now) is type(value)


def configurations() -> st.SearchStrategy[Case]:
    """Constructors of configurations."""
    sizes = {
        "d_model": 20,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 12,
        "d_mlp": 28,
        "in_channels": 2,
        "out_channels": 2,
        "patch_size": (1, 2, 2),
        "n_frames": 3,
        "height": 4,
        "width": 6,
        "rope": {"3d": Rope(dims=(4, 4, 4))},
    }
    count = values.of(0, -1, 1.5, "4", None, True, values.NAN, [], 10**12, 2.0)
    number = values.of(values.NAN, values.INF, -1.0, "1", None, True)
    choice = values.CHOICES.filter(lambda value: value is not None)
    flag = values.of("yes", 5, None, [])
    wrong: list[tuple[Any, dict, str, st.SearchStrategy]] = [
        *(
            (VideoDiTConfig, sizes, name, count)
            for name in (
                "d_model",
                "n_layers",
                "n_heads",
                "d_head",
                "d_mlp",
                "in_channels",
                "out_channels",
                "n_frames",
                "height",
                "width",
                "noise_embed_dim",
            )
        ),
        *((VideoDiTConfig, sizes, name, number) for name in ("norm_eps", "qk_norm_eps")),
        *(
            (VideoDiTConfig, sizes, name, choice)
            for name in (
                "residual",
                "norm",
                "qk_norm",
                "act_fn",
                "modulation",
                "abs_pos",
                "noise_embed",
                "action_embed",
                "unpatch_order",
            )
        ),
        *((VideoDiTConfig, sizes, name, flag) for name in ("qkv_bias", "out_bias", "mlp_bias", "norm_affine")),
        *(
            (VideoDiTConfig, sizes, name, values.of(-1, 1.5, "4", None, True, values.NAN))
            for name in ("d_text", "d_action")
        ),
        (
            VideoDiTConfig,
            sizes,
            "patch_size",
            values.of(2, (1, 2), (1, 0, 2), (1, "2", 2), None, (1, 3, 2), (1, 2.0, 2), "122"),
        ),
        (VideoDiTConfig, sizes, "period", values.of((), None, "x", (1,), BlockSpec(), ("x",))),
        (VideoDiTConfig, sizes, "rope", values.of(None, "x", {"nose": Rope(dims=(4, 4, 4))}, {"3d": (4, 4, 4)}, [])),
        (VideoDiTConfig, sizes, "model_name", values.of(None, 5, [])),
        (
            Rope,
            {"dims": (4, 4, 4)},
            "dims",
            values.of((4, 4), (3, 4, 4), (-2, 4, 4), (0, 0, 0), None, "444", ("4", 4, 4), (4.0, 4, 4), (True, 4, 4)),
        ),
        (
            Rope,
            {"dims": (4, 4, 4)},
            "theta",
            values.of((1e4,), (0.0, 1.0, 1.0), (values.NAN,) * 3, (-1.0,) * 3, None, "x", ("1", 1, 1)),
        ),
        (
            Rope,
            {"dims": (4, 4, 4)},
            "scale",
            values.of((1.0,), (values.NAN,) * 3, (values.INF,) * 3, None, ("1", 1, 1)),
        ),
        (Rope, {"dims": (4, 4, 4)}, "style", choice),
        (Rope, {"dims": (4, 4, 4)}, "coords", choice),
        (Sublayer, {}, "norm", choice),
        (Sublayer, {}, "mod", values.of((0, 1), (0, 1, -2), None, "012", (0, "1", 2), (0, 1.5, 2), 3)),
        (BlockSpec, {}, "axis", choice),
        (BlockSpec, {}, "causal_block", values.of(-1, 1.5, "1", None, True)),
        (BlockSpec, {}, "attn", values.of(None, "mod", 5)),
        (BlockSpec, {}, "mlp", values.of("mod", 5, [])),
        (vd.vae.LatentStats, {}, "mean", values.of((values.NAN,), ("x",), None, (True,))),
        (vd.vae.LatentStats, {}, "std", values.of((0.0,), (-1.0,), (values.NAN,), (values.INF,), "x")),
    ]

    @st.composite
    def draw(draw: Any) -> Case:
        kind, good, name, strategy = draw(st.sampled_from(wrong))
        value = draw(strategy)
        return Case(f"{kind.__name__}({name}={value!r})", lambda: kind(**{**good, name: value}))

    return draw()
