"""Files that are whole, for everyone who writes one: who is killed or runs out of disk leaves what was there before.

`write` replaces one file. `write_files` replaces several at once: they are written into a folder beside the old ones,
and renaming that folder to `.saved` is the moment from which they count. Then each is moved to its place. Who is killed
in between leaves some of them in `.saved`: `find` looks there first, and the next `write_files` or `settle` moves them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Content = bytes | str | Callable[[Path], object]
"""What a file is to hold: its bytes, its text, or a function that writes it to the path it is given."""

SAVED, SAVING, REMOVE = ".saved", ".saving-", ".remove"
ABANDONED = 3600  # seconds after which what a killed process left unfinished is removed


def as_path(given: str | Path, what: str = "path") -> Path:
    """What was given as a file or folder. Raises `ValueError` for anything that cannot be the name of one."""
    if not isinstance(given, str | Path) or not str(given) or "\0" in str(given):
        raise ValueError(f"{what} is {given!r:.80}; give a file or folder, as a text or a pathlib.Path")
    return Path(given)


def write(path: str | Path, content: Content) -> Path:
    """Make or replace one file, and the folder it is in; returns its path. The umask decides who may read it.

    Raises ValueError for a folder, OSError (which says what is kept) where it cannot be written.
    """
    path = Path(path)
    if path.is_symlink():
        path = path.resolve()
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; give a file")
    with _kept(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a device or a pipe is written to, not replaced
            path.write_bytes(_bytes(content))
            return path
        _clear(path.parent, f".{glob.escape(path.stem)}.*.part{path.suffix}")
        part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
        try:
            _put(part, content)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return path


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Make or replace a safetensors file. The tensors may be on any device, and share memory."""
    return write(path, tensors_file(tensors, metadata))


def tensors_file(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """The content of a safetensors file, for `write` and `write_files`."""

    def save(path: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        try:
            save_file(own, path, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # what it makes of a full disk, too
            full = "os error 28" in str(error)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error

    return save


def write_files(folder: str | Path, files: Mapping[str, Content], remove: Collection[str] = ()) -> Path:
    """Make or replace files of a folder, all together or none, and remove others; returns the folder.

    Names may have one folder in them (`heads/table.csv`). Everything else in the folder stays as it is. Readers use
    `find`. Raises ValueError where a folder has the name of a file or the reverse, OSError (which says what is kept)
    where something cannot be written.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"cannot write to the folder {folder}: it is a file; give a folder")
    for name in files:
        if not is_inside(name):
            raise ValueError(f"{name!r} is no name of a file in {folder}")
        if (folder / name).is_dir() or (folder / name).parent.is_file():
            raise ValueError(f"cannot write {folder / name}: there is a folder or a file of that name; move it away")
    with _kept(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, f"{SAVING}*")
        part = folder / f"{SAVING}{uuid.uuid4().hex[:8]}"
        try:
            part.mkdir()
            for name, content in files.items():
                (part / name).parent.mkdir(exist_ok=True)
                _put(part / name, content)
            if remove:
                _put(part / REMOVE, json.dumps(sorted(remove)))
            _move(Path(os.path.abspath(folder)).parent)
            while True:
                _move(folder)
                try:
                    os.rename(part, folder / SAVED)
                    break
                except OSError as error:  # somebody else has saved just now: theirs first
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    _move(folder)
    return folder


def find(folder: str | Path, name: str) -> Path:
    """Where the newest whole file of that name is: in its place, or where a killed `write_files` left it."""
    folder = Path(os.path.abspath(folder))
    for left in (folder / SAVED / name, folder.parent / SAVED / folder.name / name):
        if left.is_file():
            return left
    return folder / name


def settle(folder: str | Path) -> None:
    """Move what a killed `write_files` left to its place, for readers that know no `find`.

    Raises ValueError where that cannot be done: the folder then holds old and new files.
    """
    folder = Path(folder)
    with contextlib.suppress(OSError):
        _move(folder)
    if (folder / SAVED).is_dir():
        raise ValueError(
            f"a save into {folder} was stopped before its end, and this user may not finish it (the new "
            f"files are in {SAVED}); make the folder writable, or save again"
        )


def digest(content: bytes) -> str:
    """SHA-256, as text."""
    return hashlib.sha256(content).hexdigest()


def is_inside(name: str) -> bool:
    """Whether a name, perhaps read from a file, stays inside the folder that it is taken in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def outdated(folder: str | Path, manifest: str, files: Collection[str]) -> list[str]:
    """Files that an earlier `manifest` (JSON whose "files" name the SHA-256 of each) lists, that are still as it says,
    and that are not among the new `files`: what a second save leaves over."""
    try:
        listed = json.loads(find(folder, manifest).read_text(encoding="utf-8"))["files"]
        known = {str(name): about["sha256"] for name, about in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    left = [name for name in known if name not in files and is_inside(name) and find(folder, name).is_file()]
    return [name for name in left if digest(find(folder, name).read_bytes()) == known[name]]


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[None]:
    """An OSError says which path it was and that nothing is lost."""
    try:
        yield
    except OSError as error:
        said = f"{path} could not be written ({error.strerror or error}): what was there before is kept"
        raise OSError(error.errno or errno.EIO, said) from error


def _bytes(content: Content) -> bytes:
    if callable(content):
        raise ValueError("what is no ordinary file takes text or bytes only")
    return content.encode("utf-8") if isinstance(content, str) else content


def _put(path: Path, content: Content) -> None:
    """Write a new file and have it on the disk: a full one shows now."""
    with open(path, "xb") as file:
        if callable(content):
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content(path)
            os.chmod(path, mode)  # safetensors makes its files readable for the owner only
        else:
            file.write(_bytes(content))
            file.flush()
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _move(folder: Path) -> None:
    """Finish what was saved: every file to its place. Done twice, or by two at a time, it is done once."""
    saved = folder / SAVED
    if not saved.is_dir():
        return
    gone = contextlib.suppress(FileNotFoundError)
    removed = saved / REMOVE
    if removed.is_file():
        for name in filter(is_inside, json.loads(removed.read_text(encoding="utf-8"))):
            with gone:
                (folder / name).unlink()
            if "/" in name:
                with contextlib.suppress(OSError):  # not the last of its folder
                    (folder / name).parent.rmdir()
    for path in sorted(saved.rglob("*")):
        if path.is_file() and path != removed:
            place = folder / path.relative_to(saved)
            place.parent.mkdir(parents=True, exist_ok=True)
            with gone:
                os.replace(path, place)
    removed.unlink(missing_ok=True)
    for path in sorted([saved, *saved.rglob("*")], reverse=True):
        with contextlib.suppress(OSError):  # not empty: somebody else has saved since
            path.rmdir()


def _clear(folder: Path, pattern: str) -> None:
    """Remove what killed processes left, once it is sure that they do not write any more."""
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
