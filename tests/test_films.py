"""Video files as players show them: geometry, colour, time, several streams, damage, and no more work than asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from vdinterp.data import film
from vdinterp.data.video_files import read_clips, read_video, write_video

RED, BLUE, GREEN = (230, 20, 20), (20, 20, 230), (30, 200, 60)


def halves(top: tuple = RED, bottom: tuple = BLUE, height: int = 48, width: int = 64) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = top, bottom
    return image


def bar(at: int, height: int = 32, width: int = 128) -> np.ndarray:
    image = np.full((height, width, 3), 16, np.uint8)
    image[:, at : at + 8] = 235
    return image


def encode(
    path: Path,
    images: list[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: Any = 10,
    moments: list[int] | None = None,
    options: dict[str, str] | None = None,
    stream_setup: Callable[[Any], None] = lambda stream: None,
    frame_setup: Callable[[Any], Any] = lambda frame: frame,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A file written by hand. `moments`: milliseconds at which frames are shown, for a rate that varies."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=options or {"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], pixels
        if moments is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream_setup(stream)
        for index, image in enumerate(images):
            frame = frame_setup(av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24"))
            if moments is not None:
                frame.pts, frame.time_base = moments[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def bar_at(frame: torch.Tensor) -> float:
    """Column of the bar's middle."""
    bright = (frame.mean((0, 1)) > 0.5).nonzero().flatten().float()
    return float(bright.mean()) + 0.5


# Geometry


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_frames_are_turned_as_the_container_says(tmp_path: Path, turn: int) -> None:
    def rotate(stream: Any) -> None:
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        stream.set_display_rotation(turn)

    path = encode(tmp_path / "a.mp4", [halves()] * 3, stream_setup=rotate)
    shown = read_video(path)[0].permute(1, 2, 0)
    stored = torch.from_numpy(halves().astype(np.float32) / 255)
    turned = torch.rot90(stored, turn // 90, (0, 1))
    assert shown.shape == turned.shape
    assert (shown - turned).abs().mean() < 0.05  # every other way round is off by more than .3


def test_mirrored_frames(tmp_path: Path) -> None:
    image = np.concatenate([halves(RED, RED)[:, :32], halves(BLUE, BLUE)[:, :32]], axis=1)

    def mirror(stream: Any) -> None:
        if not hasattr(stream, "set_display_matrix"):
            pytest.skip("this PyAV writes no display matrix")
        stream.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])

    path = encode(tmp_path / "a.mp4", [image] * 3, stream_setup=mirror)
    left = read_video(path)[0, :, 24, 8]
    assert left[2] > 0.8 and left[0] < 0.2  # blue, which is stored on the right


def test_pixels_are_made_square(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    assert read_video(encode(tmp_path / "a.mp4", [halves()] * 2, stream_setup=wide)).shape[2:] == (48, 128)


def test_sizes_that_change_are_brought_to_the_first_and_said(tmp_path: Path) -> None:
    parts = [encode(tmp_path / f"{width}.ts", [halves(width=width)] * 3, rate=10) for width in (64, 32)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.warns(UserWarning) as said:
        video = read_video(path)
    assert video.shape[2:] == (48, 64) and len(video) >= 5
    assert any("changes its size" in str(item.message) for item in said)


# Colour


@pytest.mark.parametrize("space", ["ITU601", "ITU709"])
@pytest.mark.parametrize("span", ["MPEG", "JPEG"])
def test_colours_follow_the_stated_matrix_and_range(tmp_path: Path, space: str, span: str) -> None:
    matrix, levels = Colorspace[space], ColorRange[span]

    def tag(frame: Any) -> Any:
        frame = frame.reformat(format="yuv420p", dst_colorspace=matrix, dst_color_range=levels)
        frame.colorspace, frame.color_range = matrix, levels
        return frame

    def setup(stream: Any) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = int(matrix), int(levels)

    path = encode(tmp_path / "a.mp4", [halves(GREEN, GREEN)] * 2, stream_setup=setup, frame_setup=tag)
    shown = read_video(path)[0, :, 20, 20] * 255
    torch.testing.assert_close(shown, torch.tensor(GREEN).float(), atol=6, rtol=0)


def test_high_definition_without_a_matrix_is_read_as_players_do(tmp_path: Path) -> None:
    def code(frame: Any) -> Any:
        frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.colorspace = 2
        return frame

    image = halves(GREEN, GREEN, height=720, width=1280)
    path = encode(tmp_path / "a.mp4", [image], frame_setup=code, options={"preset": "ultrafast"})
    shown = read_video(path)[0, :, 20, 20] * 255
    torch.testing.assert_close(shown, torch.tensor(GREEN).float(), atol=6, rtol=0)


def test_high_dynamic_range_becomes_standard_colours(tmp_path: Path) -> None:
    """A page of white (203 cd/m2, the value .58 in PQ) is nearly white, not grey, and grey stays grey."""
    for level, low, high in ((0.58, 0.9, 1.0), (0.44, 0.5, 0.62), (0.0, 0.0, 0.02)):

        def setup(stream: Any) -> None:
            stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9
            stream.codec_context.colorspace = 9

        image = np.full((48, 64, 3), round(level * 255), np.uint8)
        path = encode(tmp_path / f"{level}.mp4", [image] * 2, stream_setup=setup)
        value = read_video(path)[0]
        assert low <= float(value.mean()) <= high, (level, float(value.mean()))


def test_transparent_parts_have_one_background(tmp_path: Path) -> None:
    images = []
    for index in range(3):
        image = np.zeros((48, 64, 4), np.uint8)
        image[..., :3] = (0, 80 * index, 255 - 80 * index)  # colours that nobody sees
        image[:24, :, :3], image[:24, :, 3] = RED, 255
        images.append(image)
    files = [
        encode(tmp_path / "a.mov", images, codec="qtrle", pixels="argb", options={}),
        encode(tmp_path / "a.webm", images, codec="libvpx-vp9", pixels="yuva420p", options={"crf": "10"}),
    ]
    for path in files:
        video = read_video(path)
        assert video[:, 0, 8].mean() > 0.8, path
        assert video[:, :, 36].max() < 0.06, path


# Time


@pytest.mark.parametrize("rate", [8, 24, 30, 60])
def test_fps_takes_frames_by_time(tmp_path: Path, rate: int) -> None:
    """A bar at 30 pixels a second moves 3.75 a frame at 8 frames a second, whatever the file's rate."""
    path = encode(tmp_path / "a.mp4", [bar(round(30 * index / rate)) for index in range(2 * rate)], rate=rate)
    video = read_video(path, fps=8)
    assert len(video) == 16
    moved = np.diff([bar_at(frame) for frame in video])
    assert np.allclose(moved, 3.75, atol=1.5) and abs(moved.mean() - 3.75) < 0.3
    later = read_video(path, n_frames=3, start=8, fps=8)
    assert torch.equal(later, video[8:11])


def test_a_rate_that_varies_is_said_and_resampled(tmp_path: Path) -> None:
    moments = [0, 20, 40, 240, 260, 500, 520, 800, 1000, 1200, 1220, 1240]
    images = [bar(round(0.05 * moment)) for moment in moments]
    path = encode(tmp_path / "a.mp4", images, rate=30, moments=moments)
    with pytest.warns(UserWarning, match=r"variable frame rate.*give fps="):
        assert len(read_video(path)) == len(moments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        video = read_video(path, fps=10)
    shown = [max(moment for moment in moments if moment <= 100 * index + 2) for index in range(len(video))]
    assert [bar_at(frame) for frame in video] == pytest.approx([round(0.05 * moment) + 4 for moment in shown], abs=1)


def test_clips_say_their_file_rate_and_starts(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", [bar(index) for index in range(40)], rate=20)
    clips = read_clips(path, n=2, n_frames=5, size=(8, 32), fps=10)
    assert clips.meta == {"file": "a.mp4", "fps": 10.0, "seconds": [0.0, 1.5]}
    assert clips[:1].meta == clips.meta
    assert read_clips(path, n=1, n_frames=5, size=(8, 8), stride=2).meta["fps"] == 10


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts", ".webm", ".gif"])
def test_a_later_start_is_the_same_frames(tmp_path: Path, ending: str) -> None:
    codec, pixels = {".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}.get(ending, ("libx264", "yuv420p"))
    options = {} if ending == ".gif" else {"g": "7", "crf": "20"}
    path = encode(tmp_path / f"a{ending}", [bar(2 * index) for index in range(40)], codec=codec, pixels=pixels,
                  options=options)  # fmt: skip
    everything = read_video(path)
    assert len(everything) == 40
    for start, stride in ((0, 3), (1, 1), (6, 2), (7, 1), (23, 5), (36, 1)):
        part = read_video(path, n_frames=3, start=start, stride=stride)
        assert torch.equal(part, everything[start : start + 3 * stride : stride]), (start, stride)
    clips = read_clips(path, n=3, n_frames=6, size=(32, 128))
    assert torch.equal(clips.video, torch.stack([everything[0:6], everything[17:23], everything[34:40]]))


@pytest.mark.parametrize("fps", [7, 8, 12, 15, 24, 25, 30, 50])
def test_a_gif_has_the_rate_that_it_was_written_with(tmp_path: Path, fps: int) -> None:
    """Though its delays are whole hundredths of a second, and so vary from frame to frame."""
    video = torch.stack([torch.from_numpy(bar(index)).permute(2, 0, 1) / 255 for index in range(90)])
    video[40:44] = video[40]  # frames that repeat are frames, too
    path = write_video(tmp_path / "a.gif", video, fps)
    with film.Film(path) as opened:
        assert float(opened.rate) == fps and opened.steady
        assert opened.moments is not None and np.abs(opened.moments - np.arange(90) / fps).max() <= 0.005 + 1e-9
    everything = read_video(path)
    assert len(everything) == 90 and torch.equal(read_video(path, fps=fps), everything)
    assert torch.equal(read_video(path, n_frames=2, start=80), everything[80:82])
    clips = read_clips(path, n=2, n_frames=5, size=(32, 128))
    assert clips.meta == {"file": "a.gif", "fps": fps, "seconds": [0.0, round(85 / fps, 3)]}
    assert torch.equal(clips.video[1], everything[85:])


def test_a_gif_faster_than_gifs_are_says_its_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.gif", torch.rand(10, 3, 8, 8), 60)
    assert [record.message for record in caplog.records] == [
        "a gif has 50 frames a second at most: it is written so, not with 60"
    ]
    assert read_clips(path, n=1, n_frames=10, size=(8, 8)).meta["fps"] == 50


def test_a_gif_of_uneven_delays_warns(tmp_path: Path) -> None:
    first, *others = [Image.fromarray(bar(2 * index)) for index in range(10)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=[40, 40, 400, *[40] * 7])
    with pytest.warns(UserWarning, match=r"variable frame rate \(40 to 400 ms a frame\).*give fps=13.2"):
        assert len(read_video(tmp_path / "a.gif")) == 10


def test_the_work_does_not_grow_with_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames decoded, not seconds: they are what time and memory go with."""
    decoded = {}
    heard = film.Film._heard

    for n_frames in (60, 900):
        counted = 0

        def count(self: Any, packet: Any) -> Any:
            nonlocal counted
            counted += 1
            return heard(self, packet)

        monkeypatch.setattr(film.Film, "_heard", count)
        path = encode(tmp_path / f"{n_frames}.mp4", [bar(index % 100) for index in range(n_frames)],
                      options={"g": "12", "preset": "ultrafast"})  # fmt: skip
        assert len(read_clips(path, n=2, n_frames=8, size=(8, 32))) == 2
        read_video(path, n_frames=2, start=n_frames - 2)
        decoded[n_frames] = counted
    assert decoded[900] <= 1.5 * decoded[60]


# Streams and names


def test_the_film_is_read_not_its_preview_or_cover(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size in ((16, 16), (48, 64)):
            stream: Any = container.add_stream("libx264", rate=10)
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            streams.append(stream)
        streams[0].disposition, streams[1].disposition = 0, 1  # the second is the default
        for index in range(6):
            for number, (stream, size) in enumerate(zip(streams, ((16, 16), (48, 64)), strict=True)):
                if number or index < 2:
                    image = halves(height=size[0], width=size[1])
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    assert read_video(path).shape == (6, 3, 48, 64)


def test_a_name_with_a_colon_is_a_name(tmp_path: Path) -> None:
    path = write_video(tmp_path / "take:2.mp4", torch.rand(3, 3, 16, 16))
    assert len(read_video(path)) == 3


def test_lists_of_other_files_are_refused(tmp_path: Path) -> None:
    encode(tmp_path / "a.ts", [halves()] * 3)
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\na.ts\n#EXT-X-ENDLIST\n")
    (tmp_path / "a.ffconcat").write_text("ffconcat version 1.0\nfile a.ts\n")
    for name in ("a.m3u8", "a.ffconcat"):
        with pytest.raises(ValueError, match=r"list of other files|cannot be read as video"):
            read_video(tmp_path / name)


# Damage


def noisy(n: int = 50) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [(bar(index) // 2 + generator.integers(0, 40, (32, 128, 3))).astype(np.uint8) for index in range(n)]


@pytest.mark.parametrize("ending", [".mkv", ".webm", ".mp4", ".gif"])
def test_a_film_that_breaks_off_says_how_much_is_left(tmp_path: Path, ending: str) -> None:
    codec, pixels = {".webm": ("libvpx-vp9", "yuv420p"), ".gif": ("gif", "rgb8")}.get(ending, ("libx264", "yuv420p"))
    front = {"movflags": "faststart"} if ending == ".mp4" else None
    path = encode(tmp_path / f"a{ending}", noisy(), codec=codec, pixels=pixels, options={}, container_options=front)
    whole = read_video(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])
    said = "breaks off" if ending == ".gif" else r"of 50 frames can be read"
    with pytest.warns(UserWarning, match=said):
        left = read_video(path)
    assert 20 < len(left) < 45
    n = len(left) - 1  # the last one may be incomplete
    torch.testing.assert_close(left[:n], whole[:n])
    with pytest.warns(UserWarning, match=said):
        clips = read_clips(path, n=3, n_frames=8, size=(32, 128))
    assert len(clips) == 3


def test_a_stretch_that_is_lost_is_counted(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", noisy(), options={"g": "5"})
    packets = path.read_bytes()
    n = len(packets) // 188
    path.write_bytes(packets[: 188 * (n // 3)] + packets[188 * (n // 2) :])
    with pytest.warns(UserWarning, match=r"is damaged: .*missing between others"):
        read_video(path)


# The part of a stored picture that is shown


def with_clap(path: Path, wide: int, high: int, right: int, down: int) -> None:
    """State a clean aperture: a box more in the sample entry, and every box around it as much longer."""
    numbers = [number for value in (wide, high, right, down) for number in (value, 1)]
    clap = (40).to_bytes(4, "big") + b"clap" + b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    content = bytearray(path.read_bytes())
    outer = [content.rindex(name) - 4 for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1")]
    for at in outer:
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") + len(clap)).to_bytes(4, "big")
    end = outer[-1] + int.from_bytes(content[outer[-1] : outer[-1] + 4], "big") - len(clap)
    path.write_bytes(bytes(content[:end]) + clap + bytes(content[end:]))


def with_pixel_crop(path: Path, width: int, height: int, left: int, top: int) -> None:
    """State what not to show, in the place of two other elements and a part of the empty one after them."""
    size = b"\xb0\x81" + bytes([width]) + b"\xba\x81" + bytes([height])
    before = b"\xe0\x8a" + size + bytes.fromhex("54b28104 55ee8100 ec0100000000000002 0000")
    crops = b"\x54\xcc\x81" + bytes([left]) + b"\x54\xbb\x81" + bytes([top])
    content = path.read_bytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, b"\xe0\x8e" + size + crops + b"\xec\x89" + bytes(9)))


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_only_what_the_container_shows(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"cropped.{container}"

    def with_aspect(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(1)

    images = [halves(height=48, width=64) for _ in range(3)]
    for image in images:
        image[:, :16] = GREEN
    encode(path, images, stream_setup=with_aspect)
    whole = read_video(path)
    assert tuple(whole.shape[2:]) == (48, 64)
    if container == "mp4":
        with_clap(path, 48, 24, 8, 12)
    else:
        with_pixel_crop(path, 64, 48, 16, 24)
    assert torch.equal(read_video(path), whole[:, :, 24:, 16:])


def test_a_cropping_that_leaves_nothing_is_not_believed(tmp_path: Path) -> None:
    path = encode(tmp_path / "nothing.mp4", [halves()] * 2)
    whole = read_video(path)
    with_clap(path, 4, 4, 200, 0)
    assert torch.equal(read_video(path), whole)
