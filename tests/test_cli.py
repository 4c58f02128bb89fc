"""The command line: what it prints, what it hands on, and one clear line with exit code 2 for every mistake."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result as Outcome

import vdinterp
from vdinterp.analysis.stimulus.latents import say_no_pixels
from vdinterp.cli import main
from vdinterp.data import Clips, write_video
from vdinterp.diffusion import DiffusionConfig
from vdinterp.models import HookedVideoDiT, VideoDiTConfig
from vdinterp.pipeline import VideoDiffusion, save_bundle
from vdinterp.results import Result
from vdinterp.studies import find
from vdinterp.vae import IdentityVAE, LatentStats

OF_CLIPS = ("heads", "lens", "attribute", "neurons", "patch", "probe", "induction")  # commands that look at clips


def run(*arguments: object) -> Outcome:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@dataclass(frozen=True, kw_only=True, eq=False)
class Found(Result):
    title: str
    table: pd.DataFrame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: tiny, random weights, pixel space, 3 colours, 4 frames of 8 x 8."""
    torch.manual_seed(0)
    cfg = VideoDiTConfig(
        d_model=24,
        n_layers=2,
        n_heads=1,
        d_head=24,
        d_mlp=48,
        in_channels=3,
        out_channels=3,
        patch_size=(1, 4, 4),
        n_frames=4,
        height=8,
        width=8,
    )
    pipe = VideoDiffusion(HookedVideoDiT(cfg), IdentityVAE(3), DiffusionConfig(), LatentStats((0.5,) * 3, (0.5,) * 3))
    return save_bundle(tmp_path_factory.mktemp("models") / "small", pipe, meta={"license": "MIT"})


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Takes the place of the real studies and keeps what they were called with."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def study(name: str, pipe: VideoDiffusion, **options: Any) -> Result:
        calls.append((name, options))
        return Found(title=f"Study {len(calls)}", table=pd.DataFrame({"error": [0.25]}), meta={"clips": 2})

    monkeypatch.setattr(vdinterp, "studies", SimpleNamespace(run=study, find=find), raising=False)
    return calls


def test_hooks_lists_every_hook(folder: Path) -> None:
    outcome = run("hooks", folder)
    assert outcome.exit_code == 0, outcome.output
    header, rule, *rows = outcome.output.splitlines()
    assert header.split()[:3] == ["hook", "shape", "meaning"] and set(rule) <= {"-", " "}
    assert any(row.startswith("blocks.{i}.attn.hook_pattern") and "query" in row for row in rows)
    assert len(rows) == len(vdinterp.load(folder).model.describe_hooks())


def test_models_lists_bundled_models_and_families() -> None:
    outcome = run("models")
    assert outcome.exit_code == 0, outcome.output
    for name in vdinterp.list_models():
        assert any(line.startswith(name + " ") for line in outcome.output.splitlines())
    assert "dfot" in outcome.output and "oasis" in outcome.output


def test_study_runs_each_model_and_writes_one_report(folder: Path, studies: list, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", torch.rand(13, 3, 16, 16))
    out = tmp_path / "out"
    outcome = run("study", "ablations", folder, "--video", video, "-n", 3, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    ((name, options),) = studies
    assert name == "ablations"
    assert options["clips"].video.shape == (3, 4, 3, 8, 8)
    assert options["n_clips"] == 3 and options["resume"] is True and options["out"] == out
    assert (out / "report.html").is_file() and f"Report: {out / 'report.html'}" in outcome.output
    assert pd.read_csv(out / "table.csv")["error"].tolist() == [0.25]


def test_study_of_two_models_without_a_file(folder: Path, studies: list, tmp_path: Path) -> None:
    models = []
    for name in ("small", "other"):
        pipe = vdinterp.load(folder)
        models.append(save_bundle(tmp_path / name, pipe, meta={"clips": "bounce"}))
    outcome = run("study", "ablations", *models, "--fresh", "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output
    assert [options["clips"] for _, options in studies] == [None, None]
    assert [options["out"].name for _, options in studies] == ["small", "other"]
    assert not any(options["resume"] for _, options in studies)
    assert "Study 1" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert (tmp_path / "out" / "study-2" / "table.csv").is_file()


def test_a_short_video_gives_fewer_clips_and_says_so(folder: Path, studies: list, tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", torch.rand(9, 3, 16, 16))
    outcome = run("study", "ablations", folder, "--video", video, "--n-clips", 8, "--out", tmp_path / "out")
    assert "long enough for 2 of 8 clips" in outcome.output
    assert len(studies[0][1]["clips"]) == 2


def test_heads_prints_the_table_and_writes_the_report(tmp_path: Path) -> None:
    outcome = run("heads", "tiny-induction", "-n", 4, "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.stdout.splitlines()
    head = lines.index("") + 1
    assert lines[head].split() == ["layer", "head", "role", "score", "chance", "effect", "low", "high"]
    effects = [float(line.split()[-3]) for line in lines[head + 2 : head + 18]]
    assert effects == sorted(effects, reverse=True) and "follow" not in outcome.stdout  # no actions, no scroll
    assert (tmp_path / "report.html").is_file() and len(Result.load(tmp_path).to_frame()) == 32
    again = run("heads", "tiny-induction", "-n", 4, "--out", tmp_path)
    assert again.stdout == outcome.stdout
    assert run("heads", "tiny-loops").exit_code == 2


def test_train_hands_on_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vdinterp import training

    seen: dict[str, Any] = {}
    monkeypatch.setattr(training, "train", lambda name, **options: seen.update(name=name, **options))
    outcome = run("train", "tiny-loop", "--steps", 20, "--seed", 4, "--fresh", "--out", tmp_path / "model")
    assert outcome.exit_code == 0, outcome.output
    assert seen == {"name": "tiny-loop", "steps": 20, "seed": 4, "resume": False, "out": tmp_path / "model"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hooks", "tiny-inductoin"], "tiny-induction"),
        (["hooks", "gone.ckpt"], "no file or folder gone.ckpt"),
        (["train", "tiny-lop", "--out", "{tmp}/x"], "did you mean 'tiny-loop'"),
        (["train", "tiny-loop", "--out", "{tmp}/file"], "is a file; give a folder"),
        (["study", "ablations", "{model}", "--video", "{tmp}/gone.mp4"], "no file"),
        (["study", "ablations", "{model}", "--video", "{tmp}/file"], "is empty"),
        (["study", "ablations", "{model}", "--out", "{tmp}/file"], "is a file; give a folder"),
        (["study", "ablations", "nobody"], "no model is called 'nobody'"),
        (["study", "ablation", "{model}"], "did you mean 'ablations'? the studies are ablations, heads"),
        (["heads", "{model}", "--clips", "{tmp}/gone"], "no file"),
        (["heads", "{model}", "--clips", "{tmp}/file"], "cannot be read as safetensors"),
        (["heads", "{model}", "--clips", "a", "--video", "b"], "two sources of clips"),
        *(([name, "{model}"], "give --video FILE") for name in OF_CLIPS),
        *(([name, "{model}", "--out", "{tmp}/file/x"], "which is a file; give a folder") for name in OF_CLIPS),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run(*(argument.format(tmp=tmp_path, model=folder) for argument in arguments))
    assert outcome.exit_code == 2
    line = outcome.output.strip()
    assert line.startswith("Error: ") and message in line and "\n" not in line
    assert "Traceback" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["study", "ablations"],
        ["study", "a", "b", "--n-clips", "0"],
        ["heads", "a", "--clips", "8"],
        ["train", "tiny-loop"],
        ["nothing"],
        ["--no"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 2 and "Usage:" in outcome.output


def test_debug_shows_the_traceback() -> None:
    outcome = run("--debug", "hooks", "nobody")
    assert isinstance(outcome.exception, KeyError)


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "vdinterp", "--version"], capture_output=True, text=True, check=True)
    assert vdinterp.__version__ in done.stdout


def test_patch_writes_a_ledger_a_result_and_a_report(tmp_path: Path) -> None:
    arguments = ("patch", "tiny-induction", "--over", "layer,head", "-n", 4, "--level", 0.95)
    whole = run(*arguments, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output
    assert "layer 3, head 3" in whole.output and (tmp_path / "whole" / "report.html").is_file()
    found = Result.load(tmp_path / "whole")
    assert found.to_frame()["value"].idxmax() == 15
    parts = [run(*arguments, "--out", tmp_path / "parts", "--shard", f"{part}/2") for part in (1, 2)]
    assert "8 trials are left for other shards" in parts[0].output and "Report" in parts[1].output
    again = run(*arguments, "--out", tmp_path / "parts")
    assert again.exit_code == 0
    table = Result.load(tmp_path / "parts").to_frame()
    pd.testing.assert_frame_equal(table, found.to_frame(), atol=1e-6, rtol=0)


def test_pairs_of_the_world_model_differ_in_the_last_action() -> None:
    clean, corrupted = vdinterp.studies.pairs_of(vdinterp.load("tiny-crafter"), 6)
    assert torch.equal(clean.video, corrupted.video)
    assert clean.action is not None and corrupted.action is not None
    assert torch.equal(clean.action[:, :-1], corrupted.action[:, :-1])
    implied = [vdinterp.data.crafter.implied(clips)[:, -1] for clips in (clean, corrupted)]
    assert torch.equal(implied[0], -implied[1]) and (implied[0].abs().sum(-1) == 1).all()
    with pytest.raises(ValueError, match="were asked for"):
        vdinterp.studies.pairs_of(vdinterp.load("tiny-crafter"), 500)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--site", "zz"), "No hook is called 'zz'. Did you mean 'z'?"),
        (("--over", "layer,heads"), "some of layer, head"),
        (("--shard", "0/2"), "give i/n"),
        (("--shard", "half"), "give i/n"),
        (("--level", "2"), "noise levels in (0, 1]"),
        (("--level", "0.5", "--steps", "4"), "give one of them"),
        (("--metric", "loss"), "unknown metric 'loss'"),
    ],
)
def test_patch_refuses_what_does_not_fit(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("patch", "tiny-induction", *arguments, "--out", tmp_path / "out")
    assert outcome.exit_code == 2 and message in " ".join(outcome.output.split())


def test_induction_says_what_it_found_and_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = ("induction", "tiny-loop", "--level", 0.95, "--clips-per-lag", 4, "--repeats", 0, "--out", tmp_path)
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "tiny-loop: period detector" in outcome.output and (tmp_path / "report.html").is_file()
    looks = {file: file.stat().st_mtime_ns for file in (tmp_path / "records" / "looks").iterdir()}
    assert run(*arguments).exit_code == 0
    assert looks == {file: file.stat().st_mtime_ns for file in (tmp_path / "records" / "looks").iterdir()}
    assert run(*arguments, "--fresh").exit_code == 0
    assert looks != {file: file.stat().st_mtime_ns for file in (tmp_path / "records" / "looks").iterdir()}


def test_induction_along_training(tmp_path: Path) -> None:
    outcome = run(
        "induction", "tiny-induction", "--checkpoints", "0,500", "--clips-per-lag", 3, "--repeats", 0, "--out", tmp_path
    )
    assert outcome.exit_code == 0, outcome.output
    assert "step 0: no behaviour" in outcome.output and (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tiny-loop", "--checkpoints", "all"), "without checkpoints"),
        (("tiny-induction", "--checkpoints", "0,7"), "--checkpoints 7: give all, or some of 0, 500"),
        (("tiny-induction", "--checkpoints", "0", "--level", 0.5, "--level", 0.9), "one noise level"),
        (("tiny-induction", "--level", 2), "noise levels in"),
    ],
)
def test_induction_refuses_what_does_not_fit(tmp_path: Path, arguments: tuple, message: str) -> None:
    outcome = run("induction", *arguments, "--out", tmp_path / "out")
    assert outcome.exit_code == 2 and message in outcome.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lens", "tiny-loop", "-n", 4, "--steps", 3, "--level", 0.9), "before the last block"),
        (("attribute", "tiny-loop", "-n", 4, "--level", 0.9), "Spearman"),
        (("neurons", "tiny-loop", "-n", 4, "--level", 0.9), "neurons of 4 layers"),
        (("probe", "tiny-crafter", "--label", "moved", "-n", 90, "--level", 0.9), "selectivity"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_reports_on_the_stream(tmp_path: Path, arguments: tuple, said: str) -> None:
    outcome = run(*arguments, "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert said in outcome.output and (tmp_path / "report.html").is_file()
    assert (tmp_path / "neurons.html").is_file() == (arguments[0] == "neurons")


def test_probe_says_which_labels_there_are(tmp_path: Path) -> None:
    outcome = run("probe", "tiny-loop", "--label", "material", "-n", 16, "--out", tmp_path)
    assert outcome.exit_code == 2 and "have no label 'material'; they have digit, lag" in outcome.output


def test_help_is_whole_and_says_the_defaults() -> None:
    short = CliRunner().invoke(main, ["--help"], terminal_width=80).output
    assert "..." not in short.replace("[ARGS]...", "")
    listed = run("study", "--help").output
    assert all(name in listed for name in ("Studies:", "ablations", "heads"))
    from vdinterp.analysis.induction import LEVELS

    for name, levels in {"lens": "0.3, 0.6, 0.9", "patch": "0.9", "induction": ", ".join(map(str, LEVELS))}.items():
        assert f"[default: {levels}" in " ".join(run(name, "--help").output.split())


def test_old_spellings_say_the_new_ones(folder: Path) -> None:
    outcome = run("study", "ablations", "--model", "tiny-loop")
    assert outcome.exit_code == 2 and "models are arguments: vdinterp study ablations tiny-loop" in outcome.output
    outcome = run("heads", folder, "--clips", 8)
    assert outcome.exit_code == 2 and "--n-clips 8" in outcome.output


@pytest.mark.parametrize("name", ["study", *OF_CLIPS, "train"])
def test_out_is_tried_before_anything_is_loaded(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vdinterp, "load", lambda *_: pytest.fail("loaded"), raising=False)
    (tmp_path / "file").touch()
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    arguments = {"study": ("heads", folder), "train": ("tiny-loop",)}.get(name, (folder,))
    for out, message in [("file/deep/er", "lies in"), ("out", "report.html in it is a folder")]:
        outcome = run(name, *arguments, "--out", tmp_path / out)
        assert outcome.exit_code == 2 and message in outcome.output and outcome.output.count("\n") == 1
    monkeypatch.setattr("tempfile.TemporaryFile", _refused)
    outcome = run(name, *arguments, "--out", tmp_path / "new" / "er")
    assert outcome.exit_code == 2 and "nothing can be written in" in outcome.output
    assert not (tmp_path / "new").exists()


def _refused(**_: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(vdinterp, "load", full, raising=False)
    outcome = run("heads", "tiny-loop", "--out", tmp_path)
    assert outcome.exit_code == 1 and outcome.output == "Error: [Errno 28] No space left on device: 'x'\n"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model folder without a VAE, and latents with labels for it."""
    from factories import tiny_model

    root = tmp_path_factory.mktemp("own")
    pipe = VideoDiffusion(tiny_model("3d"), None, DiffusionConfig())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(24, 3, 2, 4, 6, generator=generator)
    speed = torch.rand(24, 3, generator=generator)
    clips = Clips(kind="mine", encoded=latents, labels={"speed": speed, "side": torch.arange(24) % 2})
    return save_bundle(root / "mine", pipe), clips.save(root / "latents.safetensors")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("heads", ("-n", 4)),
        ("lens", ("-n", 4, "--steps", 2, "--level", 0.9)),
        ("attribute", ("-n", 4, "--level", 0.9)),
        ("patch", ("-n", 4)),
        ("probe", ("--label", "speed", "--level", 0.9)),
        ("probe", ("--label", "side", "--level", 0.9)),
    ],
)
def test_commands_on_latents_without_a_vae(
    name: str, options: tuple, own: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, latents = own
    monkeypatch.setattr(sys, "argv", ["vdinterp", name, "a model", "--clips", "x"])
    outcome = run(name, model, "--clips", latents, *options, "--out", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    said = json.loads((tmp_path / "report.json").read_text("utf-8"))["run"]
    assert said["command"] == f"vdinterp {name} 'a model' --clips x" and said["date"].startswith("20")
    assert f"Report: {tmp_path / 'report.html'}" in outcome.output


@pytest.mark.parametrize("arguments", [("study", "ablations"), ("neurons",)])
def test_what_has_no_pixels_says_so_and_goes_on(
    arguments: tuple, own: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, latents = own
    say_no_pixels.cache_clear()
    outcome = run(*arguments, model, "--clips", latents, "--out", tmp_path)
    assert outcome.exit_code == 0 and (tmp_path / "report.html").exists(), outcome.output
    assert "has no VAE: pictures show its latents in grey, and nothing is measured in pixels" in caplog.text


@pytest.mark.parametrize("name", ["heads", "lens", "attribute", "neurons", "patch"])
def test_commands_on_a_video(name: str, folder: Path, tmp_path: Path) -> None:
    frames = torch.rand(33, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    video = write_video(tmp_path / "clip.mp4", frames)
    steps = ("--steps", 2) if name == "lens" else ()
    outcome = run(name, folder, "--video", video, "-n", 4, *steps, "--out", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.output


def test_long_work_shows_bars_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, own: tuple[Path, Path], tmp_path: Path
) -> None:
    from vdinterp import progress

    monkeypatch.setattr(progress, "DELAY", 0)
    model, latents = own
    command = ("--clips", latents, "-n", 2, "--level", 0.9, "--out", tmp_path)
    assert "tuned lens" in run("lens", model, *command, "--steps", 2).stderr
    assert "direct effects" in run("attribute", model, *command).stderr


def test_tqdm_disable_is_obeyed() -> None:
    code = (
        "from vdinterp import progress\nprogress.DELAY = 0\n"
        "for _ in progress.bar(range(3), show=True): pass\n"
        "with progress.bar(total=2, show=True) as shown: shown.update(2)\n"
    )
    for value, silent in (("1", True), ("", False)):
        environment = {**os.environ, "TQDM_DISABLE": value}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert (done.stderr == "") is silent


def test_only_the_command_line_prints() -> None:
    package = Path(vdinterp.__file__).parent
    found = [
        str(file)
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []
