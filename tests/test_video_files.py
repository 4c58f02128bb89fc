"""Video files: what was written is read back, and every unusable file says what is wrong with it."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest
import torch

from vdinterp.data.video_files import read_clips, read_video, write_video


def moving_bar(n_frames: int = 12, height: int = 32, width: int = 48) -> torch.Tensor:
    video = torch.full((n_frames, 3, height, width), 0.1)
    for frame in range(n_frames):
        video[frame, :, :, 3 * frame : 3 * frame + 8] = torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
    return video


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_written_frames_are_read_back(tmp_path: Path, ending: str) -> None:
    video = moving_bar()
    path = tmp_path / f"bar{ending}"
    write_video(path, video)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]  # nothing half-written lies beside it
    back = read_video(path)
    assert back.shape == video.shape
    assert back.min() >= 0 and back.max() <= 1
    assert (back - video).abs().mean() < 0.03
    # Frame order and content, not only an average: each frame is nearest to itself.
    distance = (back[:, None] - video[None]).abs().mean(dim=(2, 3, 4))
    assert distance.argmin(dim=1).tolist() == list(range(len(video)))


def test_frames_size_stride_and_colour_are_as_asked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bar.mp4", moving_bar())
    everything = read_video(path)
    part = read_video(path, n_frames=4, stride=3, start=1)
    assert torch.equal(part, everything[[1, 4, 7, 10]])
    grey = read_video(path, n_frames=2, channels=1)
    torch.testing.assert_close(grey, everything[:2].mean(dim=1, keepdim=True))
    small = read_video(path, n_frames=1, size=(16, 16))
    assert small.shape == (1, 3, 16, 16)
    # A square from a 32 x 48 frame is its middle: columns 8 to 40.
    middle = everything[:1, :, :, 8:40]
    expected = torch.nn.functional.avg_pool2d(middle, 2)
    assert (small - expected).abs().mean() < 0.03


def test_odd_sizes_and_enlargement(tmp_path: Path) -> None:
    video = torch.rand(3, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    back = read_video(write_video(tmp_path / "odd.mp4", video, enlarge=3))
    assert back.shape == (3, 3, 22, 28)
    torch.testing.assert_close(back[:, :1, 1:21:3, 1:27:3], video, atol=0.1, rtol=0)


def test_clips_of_a_file_do_not_overlap(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bar.mp4", moving_bar())
    everything = read_video(path, size=(8, 8), channels=1)
    clips = read_clips(path, n=2, n_frames=5, size=(8, 8), channels=1)
    assert clips.kind == "file"
    assert torch.equal(clips.video, torch.stack([everything[0:5], everything[7:12]]))
    assert len(read_clips(path, n=9, n_frames=5, size=(8, 8))) == 2
    assert len(read_clips(path, n=1, n_frames=12, size=(8, 8))) == 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.mp4; give an mp4, webm or gif"):
        read_video(tmp_path / "gone.mp4")


def test_unusable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    whole = write_video(tmp_path / "whole.mp4", moving_bar()).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"\0\0" * 800)
    for name, message in {
        "empty.mp4": "is empty",
        "text.mp4": "cannot be read as video",
        "cut.mp4": "cannot be read as video",
        "sound.wav": "has no video in it, only audio",
        ".": "is a folder",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / name)


def test_too_short_says_how_long_it_is(tmp_path: Path) -> None:
    path = write_video(tmp_path / "bar.mp4", moving_bar())
    with pytest.raises(ValueError, match=r"has 12 frames, too few for 16 frames"):
        read_video(path, n_frames=16)
    with pytest.raises(ValueError, match=r"too few for 5 frames \(every 3\. from frame 0 on\)"):
        read_video(path, n_frames=5, stride=3)
    with pytest.raises(ValueError, match="too few for a frame 12"):
        read_video(path, start=12)
    with pytest.raises(ValueError, match="too few for one clip of 13"):
        read_clips(path, n=1, n_frames=13, size=(8, 8))


def test_bad_requests_name_what_would_work(tmp_path: Path) -> None:
    for options, message in [
        ({"n_frames": 0}, "n_frames is a whole number from 1"),
        ({"stride": 0}, "stride is a whole number from 1"),
        ({"size": (0, 8)}, "size is .height, width."),
        ({"channels": 4}, "channels is 1"),
        ({"n_frames": True}, "n_frames is a whole number"),
        ({"n_frames": 2.0}, "n_frames is a whole number"),
        ({"n_frames": 10**9}, "from 1 to 100000"),
        ({"start": -1}, "start is a whole number, 0 or more"),
        ({"size": 8}, "size is .height, width."),
        ({"fps": float("nan")}, "fps is the number of frames a second"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_video(tmp_path / "never-opened.mp4", **options)
    with pytest.raises(ValueError, match=r"must end in \.mp4, \.webm or \.gif"):
        write_video(tmp_path / "bar.avi", moving_bar())
    with pytest.raises(ValueError, match=r"\[frame channel height width\]"):
        write_video(tmp_path / "bar.mp4", torch.rand(4, 2, 8, 8))
    with pytest.raises(ValueError, match="path first"):
        write_video(moving_bar(), tmp_path / "bar.mp4")  # type: ignore[arg-type]
    holed = moving_bar()
    holed[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"frames \[3\] of the video hold values that are not finite"):
        write_video(tmp_path / "bar.mp4", holed)
    assert not list(tmp_path.iterdir())
