"""Storing and loading pipelines, and what is said when a file or a name is not what it should be."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from factories import inputs, tiny_model
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from sampling_goldens import HERE, load_model

from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.pipeline import (
    VideoDiffusion,
    list_checkpoints,
    list_families,
    list_models,
    load,
    save_bundle,
)
from vdinterp.pipeline.loading import MODELS
from vdinterp.vae import IdentityVAE, LatentStats, TinyConvCodec

CFG = VideoDiTConfig(
    model_name="tiny-random",
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_head=8,
    d_mlp=32,
    in_channels=1,
    out_channels=1,
    patch_size=(1, 4, 4),
    n_frames=4,
    height=8,
    width=8,
)
META = {"data": "noise", "recipe": {"steps": 0}, "figures": {}, "license": "MIT"}


def make_pipe(vae=None, **config) -> VideoDiffusion:
    model = HookedVideoDiT(VideoDiTConfig.from_dict({**CFG.to_dict(), **config}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).half().float()
    return VideoDiffusion(
        model, vae or IdentityVAE(1), DiffusionConfig(n_levels=100), LatentStats((0.25,), (2.0,)), {"name": "x"}
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    pipe = make_pipe()
    early = {key: value + 1 for key, value in pipe.model.state_dict().items()}
    return save_bundle(tmp_path / "tiny", pipe, META, {1200: early, 300: pipe.model})


def edit_settings(folder: Path, **changes) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_bundle_comes_back_as_it_was(folder):
    stored, back = make_pipe(), load(folder)
    assert back.model.cfg == stored.model.cfg
    assert back.diffusion == stored.diffusion and back.latent_stats == stored.latent_stats
    assert back.vae is not None and back.vae.config == {"kind": "identity", "channels": 1}
    assert back.meta == {**META, "name": "tiny", "checkpoint": None}
    for key, value in stored.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[key], value) and back.model.state_dict()[key].dtype == torch.float32
    assert not back.model.training
    weights = load_file(folder / "model.safetensors")
    assert all(key.startswith("model.") and value.dtype == torch.float16 for key, value in weights.items())
    assert not list(folder.rglob("*.part"))


def test_saving_what_was_loaded_gives_the_same_folder(folder, tmp_path):
    again = save_bundle(tmp_path / "again", load(folder))
    assert (again / "model.json").read_text() == (folder / "model.json").read_text()
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_checkpoints_along_training(folder):
    assert list_checkpoints(folder) == [300, 1200] and list_checkpoints("tiny-loop") == []
    assert 1200 in list_checkpoints("tiny-induction")
    with pytest.raises(KeyError, match="did you mean"):
        list_checkpoints("tiny-inducton")
    final, early = load(folder), load(folder, checkpoint=1200)
    for key, value in final.model.state_dict().items():
        torch.testing.assert_close(early.model.state_dict()[key], value + 1, atol=4e-3, rtol=1e-3)
    assert early.meta["checkpoint"] == 1200
    with pytest.raises(KeyError, match=r"no checkpoint of step 7; it has those of steps \[300, 1200\]"):
        load(folder, checkpoint=7)


def test_a_vae_with_weights_travels_along(tmp_path):
    torch.manual_seed(0)
    codec = TinyConvCodec()
    channels = codec.latent_channels
    pipe = make_pipe(codec, in_channels=channels, out_channels=channels)
    back = load(save_bundle(tmp_path / "latent", pipe, META))
    video = torch.rand(1, 2, 3, 56, 72, generator=torch.Generator().manual_seed(0))
    codec.eval()
    torch.testing.assert_close(back.encode(video), pipe.encode(video), atol=2e-2, rtol=2e-2)
    assert not any(parameter.requires_grad for parameter in back.vae.parameters())


# Names


def test_bundled_models_are_listed_and_loadable(folder, monkeypatch):
    monkeypatch.setattr("vdinterp.pipeline.loading.MODELS", folder.parent)
    assert list_models() == ["tiny"]
    assert load("tiny").model.cfg == CFG
    assert load("tiny", checkpoint=300).meta["checkpoint"] == 300
    with pytest.raises(KeyError, match="no model is called 'tinny'; did you mean 'tiny'"):
        load("tinny")
    with pytest.raises(ValueError, match="family and config are for reference checkpoints"):
        load("tiny", family="dfot")


def test_every_model_in_the_package_loads():
    for name in list_models():
        pipe = load(name)
        assert pipe.meta["name"] == name
        for key in ("data", "recipe", "figures", "license"):
            assert pipe.meta.get(key), f"{name} does not state its {key}"
        for step in list_checkpoints(MODELS / name):
            load(name, checkpoint=step)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "missing.ckpt", "a/b/c.safetensors"])
def test_missing_paths(name):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load(name)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no network"), ConnectionError("no route to host")])
def test_hub_names_without_a_network(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("vdinterp.pipeline.hub.reachable", lambda url: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(FileNotFoundError, match=r"somebody/model/model.json could not be fetched.*Without a network"):
        load("somebody/model")


def test_hub_names_with_a_network(folder, monkeypatch):
    asked = []

    def download(name, file):
        asked.append((name, file))
        return str(folder / file)

    monkeypatch.setattr("vdinterp.pipeline.hub.reachable", lambda url: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    pipe = load("somebody/model", checkpoint=300)
    assert pipe.meta["name"] == "somebody/model"
    assert asked == [
        ("somebody/model", "model.json"),
        ("somebody/model", "model.safetensors"),
        ("somebody/model", "checkpoints/step-00300.safetensors"),
    ]
    with pytest.raises(ValueError, match="Pass filename="):
        load("somebody/model", family="dfot")


# Files that are not what they should be


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load(folder)


def test_weights_of_another_architecture(folder):
    edit_settings(folder, config={**CFG.to_dict(), "d_mlp": 48})
    with pytest.raises(ValueError, match=r"of another shape: blocks.0.mlp.*instead of"):
        load(folder)
    edit_settings(folder, config={**CFG.to_dict(), "n_layers": 2})
    with pytest.raises(ValueError, match=r"missing: blocks.1"):
        load(folder)


@pytest.mark.parametrize(
    ("key", "says"),
    [("model.extra", "1 unknown: extra"), ("optimizer", "neither model nor VAE"), ("vae.w", "VAE weights")],
)
def test_unknown_keys(folder, key, says):
    file = folder / "model.safetensors"
    save_file({**load_file(file), key: torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=says):
        load(folder)


def test_settings_that_cannot_be_read(folder):
    edit_settings(folder, format=2)
    with pytest.raises(ValueError, match="reads format 1"):
        load(folder)
    edit_settings(folder, format=1, config={**CFG.to_dict(), "d_modle": 3})
    with pytest.raises(ValueError, match="d_modle"):
        load(folder)
    (folder / "model.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="lacks"):
        load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        load(folder)
    (folder / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no model"):
        load(folder)


def test_what_cannot_be_stored(tmp_path):
    pipe = make_pipe()
    with pytest.raises(ValueError, match="must not use the names"):
        save_bundle(tmp_path / "a", pipe, {"vae": 1})
    with pytest.raises(ValueError, match="checkpoint of step 5 is of another model"):
        save_bundle(tmp_path / "a", pipe, META, {5: {"w": torch.zeros(1)}})
    pipe.model.to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match=r"model\..* in float8_e4m3fn: weights are saved in float32, float16"):
        save_bundle(tmp_path / "a", pipe, META)
    assert not (tmp_path / "a").exists(), "nothing is written before everything is checked"


# Reference checkpoints


@pytest.fixture
def reference() -> tuple[dict, dict[str, torch.Tensor]]:
    config = json.loads((HERE / "dfot_golden.json").read_text())
    tensors = load_file(HERE / "dfot_golden.safetensors")
    return config, {k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}


def test_reference_checkpoints(reference, tmp_path):
    config, weights = reference
    lightning = {f"diffusion_model.model.{key}": value for key, value in weights.items()}
    stats = {"data_mean": torch.full((4, 1, 1), 0.5), "data_std": torch.full((4, 1, 1), 3.0)}
    torch.save({"state_dict": lightning | stats, "epoch": 3}, tmp_path / "K600.ckpt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (config, tmp_path / "config.json", str(tmp_path / "config.json")):
        pipe = load(tmp_path / "K600.ckpt", family="dfot", config=given)
    assert pipe.diffusion == DiffusionConfig("v", "cosine") and pipe.vae is None
    assert pipe.latent_stats == LatentStats((0.5,) * 4, (3.0,) * 4)
    expected = load_model().state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in pipe.model.state_dict().items())
    other = load(
        tmp_path / "K600.ckpt", family="dfot", config=config, vae=IdentityVAE(4), diffusion=DiffusionConfig("x0")
    )
    assert other.diffusion.objective == "x0" and other.schedule.config == other.diffusion
    assert other.vae is not None and other.latent_stats == pipe.latent_stats


def test_models_trained_on_continuous_levels_get_their_schedule(tmp_path):
    config = json.loads((HERE / "dfot_mcraft_golden.json").read_text())
    tensors = load_file(HERE / "dfot_mcraft_golden.safetensors")
    save_file({k.removeprefix("sd."): v for k, v in tensors.items() if k.startswith("sd.")}, tmp_path / "m.safetensors")
    pipe = load(tmp_path / "m.safetensors", family="dfot", config=config)
    assert pipe.diffusion == DiffusionConfig("v", "cosine_simple_diffusion", shift=0.125, precond_scale=0.125)


def test_reference_checkpoints_need_to_be_described(reference, tmp_path):
    config, weights = reference
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(ValueError, match="say which converter"):
        load(file)
    with pytest.raises(ValueError, match="unknown family 'sora'"):
        load(file, family="sora", config=config)
    with pytest.raises(ValueError, match="training step of a model folder"):
        load(file, checkpoint=3, family="dfot", config=config)
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load(file, family="dfot", config=tmp_path / "none.json")
    with pytest.raises(ValueError, match="instead of"):
        load(file, family="dfot", config={**config, "backbone": {**config["backbone"], "hidden_size": 128}})
    save_file({**weights, "extra.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"extra\.weight"):
        load(file, family="dfot", config=config)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated"):
        load(file, family="dfot", config=config)
    assert list_families() == ["dfot", "oasis"]


# Nothing is lost on the way


def predicted(pipe: VideoDiffusion) -> torch.Tensor:
    noisy = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return pipe.model(noisy.to(pipe.dtype), torch.tensor([[3, 50, 99, 0]] * 2))


DTYPES = ["float32", "bfloat16", "float16", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_saved_predicts_bitwise_the_same(dtype, tmp_path):
    """In each dtype, with weights that no other one holds exactly."""
    pipe = make_pipe(noise_embed="fourier")
    for parameter in pipe.model.parameters():
        generator = torch.Generator().manual_seed(2)
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    pipe.to(getattr(torch, dtype))
    back = load(save_bundle(tmp_path / "saved", pipe))
    for key, value in pipe.model.state_dict().items():
        stored = back.model.state_dict()[key]
        assert stored.dtype == value.dtype and torch.equal(stored, value), key
    assert torch.equal(predicted(back), predicted(pipe)) and back.identity == pipe.identity
    size = (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert size < 1.2 * sum(value.nbytes for value in pipe.model.state_dict().values())


def test_every_tensor_keeps_its_own_dtype(tmp_path):
    pipe = make_pipe()
    pipe.model.to(torch.bfloat16)
    pipe.model.final.linear.float()
    pipe.model.blocks[0].mlp.fc1.bias.data = pipe.model.blocks[0].mlp.fc1.bias.data.double()
    back = load(save_bundle(tmp_path / "mixed", pipe))
    dtypes = {key: value.dtype for key, value in back.model.state_dict().items()}
    assert dtypes == {key: value.dtype for key, value in pipe.model.state_dict().items()}
    assert len(set(dtypes.values())) == 3
    for name in ("dtype", "other_dtypes"):
        edit_settings(tmp_path / "mixed", **{name: "int8" if name == "dtype" else {"model.final.linear.bias": "int8"}})
        with pytest.raises(ValueError, match="names the dtype 'int8'"):
            load(tmp_path / "mixed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_that_is_asked_for(folder, reference, tmp_path, dtype):
    config, weights = reference
    save_file(weights, tmp_path / "weights.safetensors")
    torch.save(weights, tmp_path / "weights.pt")
    pipes = [load(folder, dtype=dtype, device="cpu")]
    for name in ("weights.safetensors", "weights.pt"):
        pipes.append(load(tmp_path / name, family="dfot", config=config, dtype=dtype, vae=IdentityVAE(4)))
    for pipe in pipes:
        assert {parameter.dtype for parameter in pipe.model.parameters()} == {pipe.dtype} == {dtype}
    exact = load(tmp_path / "weights.pt", family="dfot", config=config).model.state_dict()
    for pipe in pipes[1:]:
        assert all(torch.equal(value, exact[key].to(dtype)) for key, value in pipe.model.state_dict().items())
    with pytest.raises(ValueError, match=r"dtype is torch.int8; choose torch.float32"):
        load(folder, dtype=torch.int8)
    with pytest.raises(ValueError, match="dtype is 'half'; choose"):
        load(folder, dtype="half")  # type: ignore[arg-type]


def test_weights_too_large_for_the_dtype_that_is_asked_for(folder):
    file = folder / "model.safetensors"
    save_file({key: value.float() * 1e6 for key, value in load_file(file).items()}, file)
    load(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="more than float16 holds"):
        load(folder, dtype=torch.float16)


def test_tables_are_right_although_models_are_built_without_memory(tmp_path):
    """What no file holds (rotary tables, frequencies of the noise embedding) is as in a model built as usual."""
    for kind in ("3d", "space_time", "causal", "table"):
        model = tiny_model(kind)
        pipe = VideoDiffusion(model, None, DiffusionConfig())
        given = inputs(model)
        with torch.no_grad():
            assert torch.equal(load(save_bundle(tmp_path / kind, pipe)).model(**given), model(**given))


def test_nothing_is_initialised_and_no_file_is_held(folder, monkeypatch):
    """Loading draws no random numbers, and what was loaded does not change when its file does."""

    def refuse(*args, **kwargs):
        raise AssertionError("initialised")

    for name in ("xavier_uniform_", "normal_", "zeros_"):
        monkeypatch.setattr(torch.nn.init, name, refuse)
    before = torch.random.get_rng_state()
    pipe = load(folder)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = predicted(pipe)
    file = folder / "model.safetensors"
    with file.open("r+b") as raw:  # in place, as torch.save does
        raw.truncate(0)
    assert torch.equal(predicted(pipe), first)
    for parameter in pipe.model.parameters():
        assert parameter.requires_grad


def test_loading_takes_the_memory_of_the_model(tmp_path):
    """As `benchmarks/loading.py` measures it, in a process of its own."""
    script, path = Path(__file__).parent.parent / "benchmarks" / "loading.py", tmp_path / "weights.pt"
    runpy.run_path(str(script))["make"](path, "bfloat16", 2)
    asked = ["--step", "measure", "--layers", "2", "--dtypes", "bfloat16", "--dir", path]
    said = subprocess.run([sys.executable, script, *asked], check=True, capture_output=True, text=True).stdout
    found = re.search(r"loaded: ([\d.]+) x file", said)
    assert found is not None and float(found[1]) < 1.2, said
