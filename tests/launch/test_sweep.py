"""launch/sweep.py: the grid, its folders, what it refuses, and runs one after another."""

import importlib.util
import signal
import subprocess
import sys
import time

import pytest
from launch_fakes import LAUNCH, Place

spec = importlib.util.spec_from_file_location("sweep", LAUNCH / "sweep.py")
assert spec is not None and spec.loader is not None
sweep = importlib.util.module_from_spec(spec)
sys.modules["sweep"] = sweep
spec.loader.exec_module(sweep)

CONFIG = "configs/gpt2_tiny.py:kv_bias"
BASE = [f"--config={CONFIG}", "--workdir=runs/lr"]
LR = ["--sweep", "config.optimizer.lr=1e-2,3e-3"]
TRAIN = f"massact train --config={CONFIG} --workdir=runs/lr"
FILE = """
import ml_collections

def get_config(size="16"):
    return ml_collections.ConfigDict({{"batch_size": int(size), "steps": 5000}})

def get_sweep():
    return {sweep}
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in ("CONFIG", "WORKDIR", "PROCESSES"):
        monkeypatch.delenv(f"MASSACT_{name}", raising=False)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def write(tmp_path):
    def write(value):
        path = tmp_path / "swept.py"
        path.write_text(FILE.format(sweep=value))
        return str(path)

    return write


def printed(capsys, *arguments):
    code = sweep.main(arguments)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out.splitlines()


def refusal(capsys, *arguments):
    code = sweep.main(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    return line.removeprefix("sweep.py: ")


def test_a_grid(capsys):
    lines = printed(capsys, *BASE, *LR, "--sweep=config.seed=0,1", "--config.steps=300")
    assert lines == [
        f"{TRAIN}/lr-{lr}_seed-{seed} --config.steps=300 --config.optimizer.lr={lr} "
        f"--config.seed={seed}"
        for lr in ("1e-2", "3e-3") for seed in (0, 1)
    ]


def test_launchers(capsys):
    local = printed(capsys, *BASE, *LR, "--launcher=local", "--dry-run", "--processes=2",
                    "--option=--retries=3")
    assert local[1] == (
        f"{LAUNCH}/local.sh --config={CONFIG} --workdir=runs/lr/lr-3e-3 --processes=2 --retries=3 "
        "--config.optimizer.lr=3e-3"
    )
    slurm = printed(capsys, *BASE, *LR, "--launcher=slurm", "--dry-run", "--processes=16",
                    "--option=--nodes=2")
    assert slurm[0] == (
        f"sbatch --job-name=lr-1e-2 --nodes=2 {LAUNCH}/slurm.sbatch --config={CONFIG} "
        f"--workdir=runs/lr/lr-1e-2 --processes=16 --launch-dir={LAUNCH} "
        "--config.optimizer.lr=1e-2"
    )


def test_settings_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("MASSACT_CONFIG", CONFIG)
    monkeypatch.setenv("MASSACT_WORKDIR", "runs/lr")
    assert printed(capsys, *LR)[0] == f"{TRAIN}/lr-1e-2 --config.optimizer.lr=1e-2"


def test_axes_of_the_file(capsys, write):
    path = write({"config.seed": [0, 1], "config.remat": [True, False]})
    lines = printed(capsys, f"--config={path}:32", "--workdir=w", "--config.steps=4000")
    assert len(lines) == 4
    assert lines[1] == (
        f"massact train --config={path}:32 --workdir=w/seed-0_remat-false --config.steps=4000 "
        "--config.seed=0 --config.remat=false"
    )


def test_points_of_the_file_and_axes_of_the_command_line(capsys, write):
    path = write([{"config.seed": 0}, {"config.seed": 1, "config.data.source": "my text"}])
    lines = printed(capsys, f"--config={path}", "--workdir=w")
    assert [line.partition("--workdir=")[2] for line in lines] == [
        "w/seed-0 --config.seed=0",
        "w/seed-1_source-my-text --config.seed=1 '--config.data.source=my text'",
    ]
    assert len(printed(capsys, f"--config={path}", "--workdir=w", "--sweep=config.seed=5")) == 1


@pytest.mark.parametrize(("points", "names"), [
    ([{"config.optimizer.lr": "1"}], ["lr-1"]),
    ([{"config.checkpoint.every": "5", "config.watch.every": "7"}],
     ["checkpoint.every-5_watch.every-7"]),
    ([{"config.data.source": "/data/*.bin"}], ["source-data-.bin"]),
    ([{"config.optimizer.final_lr": "-"}], ["final_lr-none"]),
])
def test_names(points, names):
    assert sweep.names(points) == names


@pytest.mark.parametrize(("arguments", "said"), [
    ([*BASE, "--sweep=config.optimizer.lr=1e-2,-3"],
     "point config.optimizer.lr=-3: config.optimizer: lr is -3.0; expected: a number above 0"),
    ([*BASE, *LR, "--sweep=config.optimizer.lrr=1"],
     "point config.optimizer.lr=1e-2, config.optimizer.lrr=1: there is no setting "),
    ([*BASE, "--sweep=config.optimizer.lr=1e-2,0.01"],
     "config.optimizer.lr=1e-2 and config.optimizer.lr=0.01 are the same run"),
    ([*BASE, "--sweep=config.data.source=a b,a/b"],
     "two points have the folder source-a-b: config.data.source=a b; and config.data.source=a/b"),
    ([*BASE, "--sweep=config.seed=1,1"], "--sweep is 'config.seed=1,1'; expected: different"),
    ([*BASE, "--sweep=config.seed=1,"], "--sweep is 'config.seed=1,'; expected: config.NAME="),
    ([*BASE, "--sweep=seed=1"], "--sweep is 'seed=1'; expected: config.NAME=VALUE,VALUE,..."),
    ([*BASE, *LR, *LR], "two axes are of config.optimizer.lr; expected: one"),
    (BASE, "configs/gpt2_tiny.py has no function get_sweep; give --sweep config.NAME=VALUE,..."),
    ([*BASE, *LR, "--stpes=3"], "unexpected argument '--stpes=3'; expected: --config.NAME=VALUE"),
    ([*BASE, *LR, "--processes=0"], "--processes is '0'; expected: a whole number of at least 1"),
    (["--workdir=w", *LR], "MASSACT_CONFIG is not set; set it, or give --config=..."),
    ([f"--config={CONFIG}", *LR], "MASSACT_WORKDIR is not set; set it, or give --workdir=..."),
    (["--config=no.py", "--workdir=w"], "there is no configuration file no.py"),
])
def test_refusals(capsys, arguments, said):
    assert said in refusal(capsys, *arguments)


@pytest.mark.parametrize(("value", "said"), [
    ("3", "get_sweep returned int; expected: a dictionary of axes, or a list of points"),
    ('{"config.seed": 3}', "get_sweep gives config.seed 3; expected: a list of values"),
    ('{"config.seed": "12"}', "get_sweep gives config.seed '12'; expected: a list of values"),
    ("[]", "the sweep has no points"),
])
def test_refusals_of_the_file(capsys, write, value, said):
    assert said in refusal(capsys, f"--config={write(value)}", "--workdir=w")


MASSACT = """
    for word; do case $word in --workdir=*) folder=${word#*/} ;; esac; done
    echo "$folder" >>"$PLACE/runs-started"
    source "$PLACE/does-$folder"
"""
SEEDS = [f"--config={CONFIG}", "--workdir=runs", "--sweep=config.seed=0,1,2", "--launcher=local"]


def seeds_do(place, *bodies):
    place.command("massact", MASSACT)
    for seed, body in enumerate(bodies):
        (place.folder / f"does-seed-{seed}").write_text(body)


@pytest.fixture
def here(place, monkeypatch):
    """Runs a sweep inside this process, in the place and with its commands."""
    for name, value in place.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place.folder)
    return place


@pytest.mark.parametrize(("codes", "last"), [((0, 0, 0), 0), ((0, 1, 0), 1), ((1, 0, 2), 2)])
def test_local_runs_one_after_another(here, capfd, codes, last):
    seeds_do(here, *(f"exit {code}" for code in codes))
    handler = signal.getsignal(signal.SIGTERM)
    assert sweep.main(SEEDS) == last
    assert signal.getsignal(signal.SIGTERM) is handler
    assert here.lines("runs-started") == ["seed-0", "seed-1", "seed-2"]
    meanings = {0: "finished", 1: "failed", 2: "a person must act"}
    lines = capfd.readouterr().out.splitlines()[-3:]
    assert [line.split(maxsplit=1) for line in lines] == [
        [str(code), f"{meanings[code]:<18}  runs/seed-{seed}"] for seed, code in enumerate(codes)
    ]


def test_slurm_submits_every_point(here, capfd):
    here.command("sbatch", 'printf "%s\\n" "$*" >>"$PLACE/jobs"')
    assert sweep.main([*SEEDS[:-1], "--launcher=slurm"]) == 0
    assert [line.split()[0] for line in here.lines("jobs")] == [
        f"--job-name=seed-{seed}" for seed in (0, 1, 2)
    ]
    assert capfd.readouterr().out.count("submitted") == 3


def test_without_slurm(here, capfd, monkeypatch):
    monkeypatch.setenv("PATH", str(here.bin))
    assert sweep.main([*SEEDS[:-1], "--launcher=slurm"]) == 2
    assert capfd.readouterr().err == "sweep.py: sbatch: No such file or directory\n"


def test_asked_to_stop_before_the_run_was_there():
    stopper = sweep.Stopper()
    stopper.asked = True
    assert stopper.run(["sleep", "30"]) == -signal.SIGTERM


def test_a_sweep_can_be_stopped(place):
    saves = 'trap "exit 75" TERM; touch "$PLACE/ready"; for _ in {1..300}; do sleep 0.1; done'
    seeds_do(place, "exit 0", saves, "exit 0")
    process = subprocess.Popen(
        [sys.executable, str(LAUNCH / "sweep.py"), *SEEDS], cwd=place.folder, text=True,
        env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 30
    while not (place.folder / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    ended = place.end(process)
    assert ended.code == 75
    assert place.lines("runs-started") == ["seed-0", "seed-1"]
    assert [line.split()[:2] for line in ended.out.splitlines()[-3:]] == [
        ["0", "finished"], ["75", "stopped;"], ["-", "not"]
    ]
