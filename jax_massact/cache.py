"""The cache folder, whose entries are whole or absent."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from jax_massact.errors import ResourceError

Report = Callable[[str], None]
"""Called with a line of text before anything that takes time."""

Verify = Callable[[Path], bool]
"""Whether a folder holds the right contents."""

_RECORD = ".verified.json"
_PARTIAL = ".partial-"
_ABANDONED_S = 24 * 3600  # a half-made folder that is older belongs to a process that was killed


def cache_folder() -> Path:
    """The folder for downloads and tokens: `$MASSACT_CACHE`, else this platform's for caches."""
    chosen = os.environ.get("MASSACT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("jax_massact", appauthor=False)


def make_once(
    cache: Path,
    name: str,
    fill: Callable[[Path], None],
    say: Report,
    *,
    verify: Verify | None = None,
    needed_bytes: int = 0,
) -> Path:
    """Returns the folder `cache / name`, made by `fill` unless a sound one is there.

    Of several processes, one fills it while the others wait. It is filled under another name and
    then renamed, so that a killed process leaves no folder that is half made.

    Args:
      fill: writes the contents into an empty folder.
      verify: whether a folder holds the right contents, for a copy without a record of its digests.
      needed_bytes: room that must be free on the disk.

    Raises:
      ResourceError: the cache cannot be used, or its disk is full.
    """
    folder = cache / name
    try:
        if is_sound(folder, verify):
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _remove_abandoned(cache)
        with _alone(cache, name, say):
            if is_sound(folder, verify):  # made by another process meanwhile
                return folder
            if folder.exists():
                say(f"the cached copy in {folder} is damaged and is made again")
            with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as scratch:
                new = Path(scratch, "new")
                new.mkdir()
                fill(new)
                _record(new)
                if folder.exists():
                    os.rename(folder, Path(scratch, "old"))
                os.rename(new, folder)
    except OSError as error:
        raise ResourceError(_problem(cache, error, needed_bytes)) from error
    return folder


def is_sound(folder: Path, verify: Verify | None = None) -> bool:
    """Whether a folder of the cache is there and is as it was made.

    Its files are hashed only where a size or a time of modification is not the recorded one.
    """
    try:
        states = _states(folder)
        recorded = _recorded(folder)
        if not states or recorded.get("states") == states:
            return bool(states)
        if recorded.get("sha256") != _digests(folder) and not (verify and verify(folder)):
            return False
    except OSError:  # it may not be read, or another process is replacing it
        return False
    with contextlib.suppress(OSError):  # a cache that is not ours to write serves as well
        _record(folder)
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def why_unwritable(cache: Path) -> str | None:
    """The reason why nothing can be kept in a cache folder, if there is one."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return None
    except OSError as error:
        return _problem(cache, error, 0)


@contextlib.contextmanager
def _alone(cache: Path, name: str, say: Report) -> Iterator[None]:
    lock = filelock.FileLock(cache / f".{name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"waiting for another process that is making {cache / name}")
        held = lock.acquire()
    with held:
        yield


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != _RECORD)
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def _states(folder: Path) -> dict[str, list[int]]:
    """Size and time of modification of every file: cheap, and different after any write."""
    stats = {name: path.stat() for name, path in _files(folder).items()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256(path) for name, path in _files(folder).items()}


def _record(folder: Path) -> None:
    record = {"states": _states(folder), "sha256": _digests(folder)}
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _remove_abandoned(cache: Path) -> None:
    for partial in cache.glob(f"{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # its owner finished meanwhile
            if time.time() - partial.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(partial, ignore_errors=True)


def _problem(cache: Path, error: OSError, needed_bytes: int) -> str:
    """The error of the operating system, with the folder and what the user can do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"; expected: about {needed_bytes / 1e6:.0f} MB" if needed_bytes else ""
        problem = f"no room is left on its disk{need}"
    else:
        problem = f"{error.filename or 'it'} cannot be used: {error.strerror or error}"
    return f"cache folder {cache}: {problem}. Set MASSACT_CACHE to choose another folder"
