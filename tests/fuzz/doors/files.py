"""Video files and folders of results that somebody or something has spoilt."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

import vdinterp as vd
from fuzz import world
from fuzz.harness import Case


class Said(Exception):
    """Never raised out of a case: marks that a warning was given."""


def videos() -> st.SearchStrategy[Case]:
    """A film that breaks off, is garbled, or is something else. What can still be read is read with a warning."""

    @st.composite
    def draw(draw: Any) -> Case:
        rng = random.Random(draw(st.integers(0, 10**6)))
        how = draw(st.sampled_from(("cut", "junk", "header", "empty", "folder", "text", "name")))
        door = draw(st.sampled_from(("read_video", "read_clips")))

        def path() -> Path:
            target = world.copy_of(world.film(), "film.mp4")
            data = target.read_bytes()
            if how == "cut":
                target.write_bytes(data[: rng.randrange(1, len(data) - 200)])
            elif how == "junk":
                target.write_bytes(rng.randbytes(rng.randrange(1, 4000)))
            elif how == "header":
                target.write_bytes(rng.randbytes(64) + data[64:])
            elif how == "empty":
                target.write_bytes(b"")
            elif how == "folder":
                return target.parent
            elif how == "text":
                target.write_text(
                    rng.choice(
                        (
                            "#EXTM3U\nhttp://nowhere/x.ts\n",
                            "ffconcat version 1.0\nfile /etc/passwd\n",
                            "hello\n" * 99,
                            "{}",
                        )
                    )
                )
            else:
                return target.with_name(rng.choice(("nothing.mp4", "http:x.mp4", "concat:a|b.mp4", "pipe:0", "data:x")))
            return target

        def call() -> Any:
            if door == "read_video":
                return vd.data.read_video(path())
            return vd.data.read_clips(path(), n=1, n_frames=4, size=(8, 8))

        return Case(f"{door}, {how}", call)

    return draw()


def result_folders() -> st.SearchStrategy[Case]:
    """A saved result with a file cut, edited, gone or taken from another result: named, or exactly what was saved."""

    @st.composite
    def draw(draw: Any) -> Case:
        rng = random.Random(draw(st.integers(0, 10**6)))
        how = draw(st.sampled_from(("cut", "gone", "row", "number", "other", "json", "bytes")))

        def call() -> Any:
            folder = world.copy_of(world.saved_result(), "result")
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            file = rng.choice(files)
            data = file.read_bytes()
            if how == "cut":
                file.write_bytes(data[: rng.randrange(len(data))])
            elif how == "gone":
                file.unlink()
            elif how == "row":
                table = next(file for file in files if file.suffix == ".csv")
                lines = table.read_text().splitlines(keepends=True)
                table.write_text("".join(lines[:-1]))
            elif how == "number":
                table = next(file for file in files if file.suffix == ".csv")
                table.write_text(table.read_text().replace("0.25", "0.75"))
            elif how == "other":
                tensors = next(file for file in files if file.suffix == ".safetensors")
                from safetensors.torch import save_file

                save_file({"values": torch.zeros(2, 3)}, tensors)
            elif how == "json":
                record = json.loads((folder / "result.json").read_text())
                key = rng.choice(sorted(record))
                record[key] = rng.choice((None, 5, "x", [], {}))
                (folder / "result.json").write_text(json.dumps(record))
            else:
                spoilt = bytearray(data)
                spoilt[rng.randrange(len(spoilt))] ^= 0x41
                file.write_bytes(bytes(spoilt))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return world.Kept.load(folder)

        def check(found: Any) -> None:
            kept = world.result()
            assert found.table.equals(kept.table), "another table came back"
            assert torch.equal(found.values, kept.values), "other tensors came back"
            assert found.meta == kept.meta, "other settings came back"

        return Case(f"a result folder, {how}", call, refused=False, check=check)

    return draw()
