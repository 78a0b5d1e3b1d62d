"""The cache folder, whose entries are whole or absent."""

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import platformdirs

from jax_massact.errors import ResourceError

Report = Callable[[str], None]
"""Called with a line of text before anything that takes time."""

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
    is_sound: Callable[[Path], bool],
    say: Report,
    *,
    needed_bytes: int = 0,
) -> Path:
    """Returns the folder `cache / name`, made by `fill` unless a sound one is there.

    Of several processes, one fills it while the others wait. It is filled under another name and
    then renamed, so that a killed process leaves no folder that is half made.

    Args:
      fill: writes the contents into an empty folder.
      is_sound: whether a folder that exists holds what `fill` wrote.
      needed_bytes: room that must be free on the disk.

    Raises:
      ResourceError: the cache cannot be written, or its disk is full.
    """
    folder = cache / name
    if folder.is_dir() and is_sound(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _remove_abandoned(cache)
        with _alone(cache, name, say):
            if folder.is_dir():
                if is_sound(folder):  # made by another process meanwhile
                    return folder
                say(f"the cached copy in {folder} is damaged and is made again")
            with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as scratch:
                new = Path(scratch, "new")
                new.mkdir()
                fill(new)
                if folder.exists():
                    os.rename(folder, Path(scratch, "old"))
                os.rename(new, folder)
    except OSError as error:
        raise ResourceError(_problem(cache, error, needed_bytes)) from error
    return folder


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
        problem = f"{error.filename or 'it'} cannot be written: {error.strerror or error}"
    return f"cache folder {cache}: {problem}. Set MASSACT_CACHE to choose another folder"
