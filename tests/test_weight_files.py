"""Files of weights that are none, or of another model: named at load, before any memory is taken for them."""

from __future__ import annotations

import json
import logging
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from factories import golden, tiny_model
from safetensors.torch import load_file, save_file

import vdinterp as vd
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.models.loading import read_checkpoint
from vdinterp.pipeline import save_bundle
from vdinterp.vae import DiffusersVAE, IdentityVAE, LatentStats, TinyConvCodec

KEY = "blocks.1.attn.qkv.weight"


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    pipe = vd.VideoDiffusion(tiny_model("3d"), IdentityVAE(2), vd.DiffusionConfig())
    return save_bundle(tmp_path_factory.mktemp("models") / "tiny", pipe)


@pytest.fixture
def folder(stored, tmp_path) -> Path:
    (tmp_path / "tiny").mkdir()
    for file in stored.iterdir():
        (tmp_path / "tiny" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "tiny"


def edit_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file({key: change(key, value).contiguous() for key, value in load_file(file).items()}, file)


def edit_settings(folder: Path, **changes) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def spoil(value: torch.Tensor, by: float) -> torch.Tensor:
    spoilt = value.clone()
    spoilt.view(-1)[-1] = by
    return spoilt


# Values

SPOILT = {
    "NaN": (lambda value: spoil(value, float("nan")), "holds NaN"),
    "infinite": (lambda value: spoil(value, float("-inf")), "holds infinity"),
    "beyond float32": (lambda value: spoil(value.double(), 1e300), "holds infinity, or more than float32"),
    "int8": (lambda value: (value * 40).to(torch.int8), "is int8; .* Quantised"),
    "bool": (lambda value: value > 0, "is bool"),
    "complex": (lambda value: value.to(torch.complex64), "is complex64"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_tensors_that_are_no_weights_are_named_through_every_door(folder, kind, tmp_path):
    change, says = SPOILT[kind]
    edit_weights(folder, lambda key, value: change(value.float()) if key == f"model.{KEY}" else value)
    with pytest.raises(ValueError, match=f"{KEY} of the model in .*{says}"):
        vd.load(folder)
    for name, family, theirs in (
        ("dfot_golden", "dfot", "dit_base.blocks.1.attn.qkv.weight"),
        ("oasis_golden", "oasis", "blocks.1.t_attn.to_qkv.weight"),
        ("oasis_golden", "oasis", "blocks.1.t_attn.rotary_emb.freqs"),
    ):
        config, weights, _ = golden(name)
        weights = {**weights, theirs: change(weights[theirs])}
        with pytest.raises(ValueError, match=f"{theirs} of the checkpoint for {family} {says}"):
            HookedVideoDiT.from_state_dict(family, config, weights)
        torch.save(weights, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=f"{theirs} of the checkpoint for {family} {says}"):
            vd.load(tmp_path / "weights.pt", family=family, config=config)


def test_every_tensor_is_looked_at():
    config, weights, _ = golden("dfot_golden")
    for key, value in list(weights.items())[::6]:
        with pytest.raises(ValueError, match=f"{key} of .* NaN"):
            HookedVideoDiT.from_state_dict("dfot", config, {**weights, key: spoil(value, float("nan"))})


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["dfot_golden", "oasis_golden"])
def test_other_precisions_are_read(name, dtype):
    config, weights, _ = golden(name)
    family = name.partition("_")[0]
    exact = HookedVideoDiT.from_state_dict(family, config, weights).state_dict()
    model = HookedVideoDiT.from_state_dict(family, config, {key: value.to(dtype) for key, value in weights.items()})
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, exact[key].to(dtype).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_rotary_frequencies_are_refused_in_every_precision(dtype):
    config, weights, _ = golden("oasis_golden")
    key = "temporal_rotary_emb.freqs"
    weights = {**weights, key: weights[key] * 1.05}
    with pytest.raises(ValueError, match="other rotary frequencies"):
        HookedVideoDiT.from_state_dict("oasis", config, {name: value.to(dtype) for name, value in weights.items()})


def test_weights_that_were_never_written(folder, stored, caplog):
    edit_weights(folder, lambda key, value: torch.zeros_like(value))
    with pytest.raises(ValueError, match=r"every weight matrix of the model in .* is zero"):
        vd.load(folder)
    config, weights, _ = golden("dfot_golden")
    with pytest.raises(ValueError, match="every weight matrix of the checkpoint for dfot is zero"):
        HookedVideoDiT.from_state_dict("dfot", config, {key: value * 0 for key, value in weights.items()})
    edit_weights(folder, lambda key, value: load_file(stored / "model.safetensors")[key] * (key != f"model.{KEY}"))
    with caplog.at_level(logging.WARNING, "vdinterp"):
        vd.load(folder)
    assert f"nothing but zeros in {KEY}" in caplog.text


@pytest.mark.parametrize("kind", ["3d", "table", "space_time", "cross"])
def test_a_freshly_initialised_model_is_no_empty_file(tmp_path, kind, caplog):
    model = HookedVideoDiT(tiny_model(kind).cfg)
    with caplog.at_level(logging.WARNING, "vdinterp"):
        vd.load(save_bundle(tmp_path / "new", vd.VideoDiffusion(model, None, vd.DiffusionConfig())))
    assert "zeros" not in caplog.text


def test_dictionaries_that_are_no_state_dict():
    config, weights, _ = golden("dfot_golden")
    for given, says in (
        ({**weights, "pos": "linear"}, "1 unknown: pos"),
        ({**weights, "patch_embedder.proj.bias": [0.0] * 64}, "proj.bias of .* is a list; a dictionary of tensors"),
        ([1], "state_dict is a list"),
    ):
        with pytest.raises(ValueError, match=says):
            HookedVideoDiT.from_state_dict("dfot", config, given)  # type: ignore[arg-type]


def test_half_of_the_latent_statistics(tmp_path):
    config, weights, _ = golden("dfot_golden")
    for state, settings, says in (
        ({"data_mean": torch.zeros(4)}, {}, "the checkpoint has data_mean but no data_std"),
        ({}, {"data_std": [1.0] * 4}, "the configuration has data_std but no data_mean"),
        ({}, {"data_mean": [float("nan")] * 4, "data_std": [1.0] * 4}, "mean is"),
        ({}, {"data_mean": "zero", "data_std": [1.0] * 4}, "data_mean is 'zero'"),
        ({}, {"data_mean": [0.0] * 3, "data_std": [1.0] * 3}, "of 3 channels; dfot takes latents of 4"),
    ):
        save_file({**weights, **state}, tmp_path / "weights.safetensors")
        with pytest.raises(ValueError, match=says):
            vd.load(tmp_path / "weights.safetensors", family="dfot", config={**config, **settings})


# Averaged weights


@pytest.mark.parametrize("name", ["dfot_golden", "dfot_mcraft_golden"])
def test_averaged_weights_are_taken_as_the_reference_does(tmp_path, name, caplog):
    """A full Lightning checkpoint: raw weights, and in the optimizer's state the average of each parameter in order."""
    config, weights, _ = golden(name)
    raw = {f"diffusion_model.model.{key}": torch.randn_like(value) for key, value in weights.items()}
    buffers = {key: value for key, value in weights.items() if key.endswith((".freqs", ".phases"))}
    raw |= {f"diffusion_model.model.{key}": value for key, value in buffers.items()}
    average = [value for key, value in weights.items() if key not in buffers]
    full = {"state_dict": raw, "optimizer_states": [{"state": {}, "param_groups": [], "ema": average}]}
    torch.save(full, tmp_path / "full.ckpt")
    with caplog.at_level(logging.INFO, "vdinterp"):
        model = vd.load(tmp_path / "full.ckpt", family="dfot", config=config).model
    assert "averaged weights (EMA) are taken" in caplog.text
    expected = HookedVideoDiT.from_state_dict("dfot", config, weights).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    full["optimizer_states"][0]["ema"] = average[:-1]
    torch.save(full, tmp_path / "full.ckpt")
    with pytest.raises(ValueError, match="do not line up with its"):
        read_checkpoint(tmp_path / "full.ckpt")
    torch.save({**full, "optimizer_states": []}, tmp_path / "released.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "released.ckpt")[next(iter(raw))], raw[next(iter(raw))])


# Sizes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layers": 10**9}, "n_layers is 1000000000"),
        ({"n_layers": 1000}, "998 layers missing: blocks.2, blocks.3"),
        ({"d_mlp": 10**6}, "of another shape: blocks.0.mlp"),
        ({"d_mlp": 10**12}, "d_mlp is 1000000000000"),
        ({"d_model": 2**20, "d_action": 2**20}, "missing: action_embed"),
        ({"height": 2**20, "width": 2**19 * 2, "abs_pos": "learned_spatial"}, "missing: pos_embed"),
        ({"period": [{"attn": {"mod": [0, 1, 999]}}]}, "of another shape: blocks.0.modulation"),
    ],
)
def test_a_configuration_alone_takes_no_memory(folder, changes, says):
    settings = json.loads((folder / "model.json").read_text())
    edit_settings(folder, config={**settings["config"], **changes})
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ValueError, match=says):
        vd.load(folder)
    assert time.process_time() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("vae", "says"),
    [
        ({"kind": "tiny_conv", "widths": [60_000] * 3}, "missing: decoder.0.bias"),
        ({"kind": "tiny_conv", "widths": [10**6] * 3}, "at most 65536"),
        ({"kind": "tiny_conv", "widths": ["8", 8, 8]}, "widths is .* 3 whole numbers"),
        ({"kind": "tiny_conv", "noise": float("nan")}, "noise is nan"),
        ({"kind": "tiny_conv", "colour": 3}, "takes in_channels, latent_channels, widths, noise; not colour"),
        ({"kind": "identity", "channels": "2"}, "channels is '2'"),
        ({"kind": ["identity"]}, "unknown kind of VAE"),
        ("identity", "described by a dictionary"),
        ({"kind": "diffusers", "class": "AutoencoderKL", "config": {"layers_per_block": 10**9}}, "layers_per_block is"),
        ({"kind": "diffusers", "class": "AutoencoderKL", "config": {"block_out_channels": [10**9]}}, "block_out_chan"),
        ({"kind": "diffusers", "class": "AutoencoderKL", "config": {"block_out_channels": 3}}, "no AutoencoderKL can"),
        ({"kind": "diffusers", "class": "AutoencoderKL", "config": 3}, "config is 3; a dictionary"),
        ({"kind": "diffusers", "class": "os", "config": {}}, "no autoencoder 'os'"),
    ],
)
def test_a_vae_that_does_not_fit_its_file(folder, vae, says):
    edit_settings(folder, vae=vae)
    with pytest.raises(ValueError, match=says):
        vd.load(folder)


def test_weights_of_a_vae_are_judged_too(tmp_path):
    model = tiny_model("3d", in_channels=8, out_channels=8)
    pipe = vd.VideoDiffusion(model, TinyConvCodec(widths=(8, 8, 8)), vd.DiffusionConfig())
    folder = save_bundle(tmp_path / "coded", pipe)
    vd.load(folder)
    key = "vae.encoder.0.weight"
    for change, says in ((lambda value: value.to(torch.int8), "is int8"), (lambda value: value * torch.nan, "NaN")):
        save_bundle(folder, pipe)
        edit_weights(folder, lambda name, value, change=change: change(value) if name == key else value)
        with pytest.raises(ValueError, match=f"encoder.0.weight of the VAE in .* {says}"):
            vd.load(folder)


# Files that go with weights, or hold them otherwise


def test_other_kinds_of_file(tmp_path):
    config = golden("dfot_golden")[0]
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "model.pt").write_bytes(b"\x80\x04" + bytes(100))
    (tmp_path / "notes.txt").write_text("weights")
    for name, says in (
        ("model.safetensors.index.json", "index of a checkpoint in several files"),
        ("model.gguf", "a GGUF file, whose weights are quantised"),
        ("model.pt", "no complete checkpoint"),
        ("notes.txt", "no complete checkpoint"),
    ):
        with pytest.raises(ValueError, match=says) as raised:
            vd.load(tmp_path / name, family="dfot", config=config)
        assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


# Networks


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("went to the network")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)


def test_a_folder_never_fetches_its_vae_by_itself(folder, offline, monkeypatch):
    named = {"kind": "diffusers", "class": "AutoencoderKL", "pretrained": "somebody/vae", "options": {}}
    edit_settings(folder, vae=named)
    with pytest.raises(ValueError, match=r"takes its VAE from 'somebody/vae' .* vae='hub'"):
        vd.load(folder)
    assert isinstance(vd.load(folder, vae=IdentityVAE(2)).vae, IdentityVAE)
    asked = []
    fetch = lambda name, kind, **options: asked.append((name, kind, options)) or IdentityVAE(2)  # noqa: E731
    monkeypatch.setattr(DiffusersVAE, "from_pretrained", fetch)
    edit_settings(folder, vae={**named, "options": {"subfolder": "vae"}})
    vd.load(folder, vae="hub")
    assert asked == [("somebody/vae", "AutoencoderKL", {"subfolder": "vae"})]
    for options in ({"proxies": "http://evil"}, {"trust_remote_code": True}, {"subfolder": ["a"]}, [1]):
        edit_settings(folder, vae={**named, "options": options})
        with pytest.raises(ValueError, match="options"):
            vd.load(folder, vae="hub")
    with pytest.raises(ValueError, match=r"options are subfolder, .*; not proxies"):
        vd.vae.build({**named, "options": {"proxies": "http://evil"}})
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["models/mine", "models/deep/mine", "./mine", "models/mine.safetensors", "~/mine"])
def test_paths_that_are_not_there_are_not_asked_of_the_network(tmp_path, monkeypatch, offline, name):
    (tmp_path / "models" / "mind").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no file or folder") as raised:
        vd.load(name)
    assert ("models has mind" in str(raised.value)) == (name == "models/mine")


def test_without_a_network_a_hub_name_fails_at_once(monkeypatch, caplog):
    """Also where looking the host up takes as long as it likes."""
    over = threading.Event()

    def unanswered(*args, **kwargs):
        over.wait(30)
        raise OSError

    monkeypatch.setattr("vdinterp.pipeline.hub.PATIENCE", 0.1)
    monkeypatch.setattr("socket.create_connection", unanswered)
    began = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match=r"somebody/model/model.json could not be fetched .*no network, and no copy"
    ):
        vd.load("somebody/model")
    assert time.monotonic() - began < 20
    over.set()
    assert "somebody/model is nothing on this disk: no network" in caplog.text


def test_copies_from_earlier_do_without_a_network(monkeypatch, tmp_path, stored):
    monkeypatch.setattr("vdinterp.pipeline.hub.reachable", lambda url: False)
    repository = tmp_path / "models--somebody--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(stored)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert vd.load("somebody/model").meta["name"] == "somebody/model"


# Folders and models of other libraries


def test_folders_of_diffusers_say_of_which_class(tmp_path):
    (tmp_path / "latte").mkdir()
    (tmp_path / "latte" / "config.json").write_text('{"_class_name": "LatteTransformer3DModel"}')
    for given in ({}, {"family": "dfot", "config": "K600"}):
        with pytest.raises(ValueError, match="a diffusers folder of class LatteTransformer3DModel: no converter yet"):
            vd.load(tmp_path / "latte", **given)
    (tmp_path / "latte" / "model_index.json").write_text('{"_class_name": "LattePipeline"}')
    with pytest.raises(ValueError, match=r"class LattePipeline: no converter yet; .* dfot .*K600, MCRAFT"):
        vd.load(tmp_path / "latte")
    (tmp_path / "raw").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no model.json"):
        vd.load(tmp_path / "raw")
    (tmp_path / "raw" / "dfot.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the checkpoint file dfot.ckpt: load that by its own path"):
        vd.load(tmp_path / "raw")


def test_published_configurations_by_name(tmp_path):
    _, weights, _ = golden("dfot_golden")
    save_file(weights, tmp_path / "k600.safetensors")
    with pytest.raises(ValueError, match=r"missing: dit_base.blocks.10"):
        vd.load(tmp_path / "k600.safetensors", family="dfot", config="K600")
    with pytest.raises(FileNotFoundError, match=r"no configuration file K601; published .* \['K600', 'MCRAFT'\]"):
        vd.load(tmp_path / "k600.safetensors", family="dfot", config="K601")
    with pytest.raises(ValueError, match=r"config is a int; .* \['OASIS_500M'\]"):
        vd.load(tmp_path / "k600.safetensors", family="oasis", config=3)  # type: ignore[arg-type]
    assert vd.list_families() == ["dfot", "oasis"]


def test_what_is_no_pipeline(tmp_path):
    model, diffusion = tiny_model("3d"), vd.DiffusionConfig()
    for make, says in (
        (lambda: vd.VideoDiffusion(torch.nn.Linear(2, 2), None, diffusion), r"model is a torch.nn.*Linear; a pipeline"),
        (lambda: vd.VideoDiffusion(model, torch.nn.Linear(2, 2), diffusion), "vae is a Linear; .*DiffusersVAE"),
        (lambda: vd.VideoDiffusion(model, None, {"objective": "v"}), "diffusion is a dict"),
        (lambda: vd.VideoDiffusion(model, None, diffusion, (0, 1)), "latent_stats is a tuple"),
        (lambda: vd.VideoDiffusion(model, None, diffusion, LatentStats((0.0,) * 3, (1.0,) * 3)), "of 3 channels"),
        (lambda: save_bundle(vd.VideoDiffusion(model, None, diffusion), tmp_path), "takes a folder and a VideoDiff"),
        (lambda: save_bundle(tmp_path, model), "save_bundle.path, pipe. .* got .*Path, HookedVideoDiT"),
        (lambda: save_bundle(tmp_path, vd.VideoDiffusion(model, None, diffusion), "mine"), "meta is a str"),
        (lambda: save_bundle(tmp_path, vd.VideoDiffusion(model, None, diffusion), {"a": object()}), "written as JSON"),
    ):
        with pytest.raises(ValueError, match=says):
            make()


def test_devices_that_are_not_there(folder):
    pipe = vd.load(folder)
    for device in ("cuda:99", "nowhere", 10**6):
        with pytest.raises(ValueError, match=f"device '{device}' is not to be had here; there are cpu"):
            vd.load(folder, device=device)  # type: ignore[arg-type]
    for device in ("cuda:99", torch.device("cuda:99")):
        with pytest.raises(ValueError, match="device 'cuda:99' is not to be had here; there are cpu"):
            pipe.to(device)
    assert pipe.to("cpu", torch.float64).dtype == torch.float64


def test_a_spoilt_video_is_named():
    pipe = vd.VideoDiffusion(tiny_model("3d"), IdentityVAE(2), vd.DiffusionConfig())
    video = torch.rand(2, 3, 2, 4, 6)
    video[1, 2, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="got NaN, first in clip 1, frame 2"):
        pipe.encode(video)
    video[1, 2, 0, 3, 3] = torch.inf
    with pytest.raises(ValueError, match=r"got values in .*inf"):
        pipe.encode(video)


class Absent(torch.nn.Module):
    """A VAE of the user's own, whose encoding depends on its mode."""

    config, latent_channels = {"kind": "own"}, 2

    def __init__(self) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return self.drop(video)

    decode = encode


def test_a_pipelines_vae_runs_in_evaluation_mode():
    vae = Absent()
    pipe = vd.VideoDiffusion(tiny_model("3d"), vae, vd.DiffusionConfig())
    video = torch.rand(1, 3, 2, 4, 6)
    assert torch.equal(pipe.decode(pipe.encode(video)), video)
    assert vae.training and vae.drop.training


def test_what_a_configuration_names_is_what_is_built():
    """Nothing of a file's architecture is dropped on the way."""
    cfg = VideoDiTConfig.from_dict({**tiny_model("table").cfg.to_dict(), "abs_pos": "none"})
    assert not hasattr(HookedVideoDiT(cfg), "pos_embed")
