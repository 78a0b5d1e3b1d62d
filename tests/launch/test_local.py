"""launch/local.sh: what it would run, what it refuses, and how it ends N processes."""

import re
import signal
import time

import pytest
from launch_fakes import Place, flags

SETTINGS = {"config": "c.py:kv_bias", "workdir": "runs/a", "processes": "2"}
CPU_FLAGS = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
GPU_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true "
    "--xla_gpu_first_collective_call_terminate_timeout_seconds=600"
)
# Sources a script for the index of its process: what that process does.
MASSACT = """
    for word; do case $word in --process=*) index=${word#*=} ;; esac; done
    echo "$*" >>"$PLACE/commands"
    echo "hello from ${index-alone}"
    echo >>"$PLACE/started-${index-alone}"
    source "$PLACE/does-${index-alone}"
"""
SAVES_AND_ENDS = """
    trap 'echo saved; exit 75' TERM
    touch "$PLACE/ready-$index"
    for _ in {1..300}; do sleep 0.1; done
"""


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.command("massact", MASSACT)
    return place


def does(place, index, body):
    (place.folder / f"does-{index}").write_text(body)


def wait_for(*paths):
    end = time.monotonic() + 20
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, f"{paths} did not come"
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_dry_run(place):
    ended = place.run("local.sh", "--dry-run", *flags(SETTINGS), "--config.steps=5",
                      "--", "--config.data.source=my text")
    train = "massact train --config=c.py:kv_bias --workdir=runs/a --config.steps=5 " \
        "'--config.data.source=my text' --coordinator=127.0.0.1:PORT --processes=2"
    start = f"env JAX_PLATFORMS=cpu XLA_FLAGS={CPU_FLAGS} {train}"
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [f"{start} --process=0", f"{start} --process=1"]
    assert not (place.folder / "runs").exists() and not place.lines("commands")


def test_settings_come_from_the_environment_and_flags_win(place):
    place.env = {"MASSACT_CONFIG": "env.py", "MASSACT_WORKDIR": "env", "MASSACT_PROCESSES": "3",
                 "MASSACT_PORT": "12345", "MASSACT_XLA_FLAGS_FILE": "none"}
    lines = place.run("local.sh", "--dry-run", "--config=flag.py").out.splitlines()
    assert lines[2] == (
        "env JAX_PLATFORMS=cpu XLA_FLAGS= massact train --config=flag.py --workdir=env "
        "--coordinator=127.0.0.1:12345 --processes=3 --process=2"
    )


def test_one_process_needs_no_coordinator(place):
    ended = place.run("local.sh", "--dry-run", *flags(SETTINGS | {"processes": "1"}))
    assert ended.out.splitlines() == [
        f"env JAX_PLATFORMS=cpu XLA_FLAGS={CPU_FLAGS} massact train --config=c.py:kv_bias "
        "--workdir=runs/a"
    ]


def test_devices(place):
    place.env = {"XLA_FLAGS": "--xla_mine=1"}
    cpu = place.run("local.sh", "--dry-run", *flags(SETTINGS), "--devices-per-process=4").out
    assert (
        f"'XLA_FLAGS={CPU_FLAGS} --xla_force_host_platform_device_count=4 --xla_mine=1'" in cpu
    )
    gpu = flags(SETTINGS | {"platform": "gpu", "devices-per-process": "2"})
    lines = place.run("local.sh", "--dry-run", *gpu).out.splitlines()
    start = f"env JAX_PLATFORMS=cuda 'XLA_FLAGS={GPU_FLAGS} --xla_mine=1' CUDA_VISIBLE_DEVICES="
    assert [line.partition(" massact")[0] for line in lines] == [start + "0,1", start + "2,3"]
    place.env = {"CUDA_VISIBLE_DEVICES": "4,5,6,7,8"}
    assert "CUDA_VISIBLE_DEVICES=6,7 massact" in place.run("local.sh", "--dry-run", *gpu).out
    place.env = {"CUDA_VISIBLE_DEVICES": "4,5,6"}
    assert place.run("local.sh", "--dry-run", *gpu).refused() == (
        "local.sh: CUDA_VISIBLE_DEVICES is 4,5,6; needed: 4 devices"
    )


def test_tpu(place):
    ended = place.run("local.sh", "--dry-run", "--platform=tpu", *flags(SETTINGS))
    assert "one process drives every chip" in ended.refused()
    ended = place.run(
        "local.sh", "--dry-run", "--platform=tpu", *flags(SETTINGS | {"processes": "1"})
    )
    assert "env JAX_PLATFORMS=tpu 'LIBTPU_INIT_ARGS=--xla_tpu_" in ended.out


@pytest.mark.parametrize("name", SETTINGS)
def test_half_configured(place, name):
    rest = {key: value for key, value in SETTINGS.items() if key != name}
    variable = f"MASSACT_{name.upper()}"
    assert place.run("local.sh", *flags(rest)).refused() == (
        f"local.sh: {variable} is not set; set it, or give --{name}=..."
    )
    assert not place.lines("commands")


@pytest.mark.parametrize(("argument", "said"), [
    ("--processes=0", "MASSACT_PROCESSES is '0'; expected: a whole number of at least 1"),
    ("--processes=2x", "MASSACT_PROCESSES is '2x'; expected: a whole number of at least 1"),
    ("--processes=08", "MASSACT_PROCESSES is '08'; expected: a whole number of at least 1"),
    ("--platform=gpus", "MASSACT_PLATFORM is 'gpus'; expected for --platform: cpu gpu tpu"),
    ("--platform=gpu", "MASSACT_DEVICES_PER_PROCESS is not set; set it, or give "
     "--devices-per-process=..."),
    ("--port=70000", "MASSACT_PORT is 70000; expected: at most 65535"),
    ("--xla-flags=no.txt", "there is no file of XLA flags no.txt; expected: a file, or none"),
    ("--prcesses=2", "there is no option --prcesses; see --help"),
    ("--retries", "unexpected argument --retries; expected: --NAME=VALUE, --config.NAME=VALUE or "
     "--dry-run"),
])
def test_wrong_settings(place, argument, said):
    assert place.run("local.sh", *flags(SETTINGS), argument).refused() == f"local.sh: {said}"


def test_without_massact(place):
    (place.bin / "massact").unlink()
    place.env = {"PATH": f"{place.bin}:/usr/bin:/bin"}
    assert place.run("local.sh", *flags(SETTINGS)).refused() == (
        "local.sh: there is no command massact; pip install it, or activate its environment"
    )


def test_all_finish(place):
    place.env = {"MASSACT_COORDINATOR": "left.over:1", "MASSACT_PROCESS": "7",
                 "MASSACT_PROCESSES": "9"}
    body = 'echo "left: $MASSACT_COORDINATOR$MASSACT_PROCESS$MASSACT_PROCESSES"; echo bad >&2\n'
    does(place, 0, body)
    does(place, 1, body)
    ended = place.run("local.sh", *flags(SETTINGS))
    assert ended.code == 0, ended.err
    for index in (0, 1):
        said = ["hello from", "left:", "bad"]
        assert [line for line in ended.out.splitlines() if line.startswith(f"[{index}]")] == [
            f"[{index}] hello from {index}", f"[{index}] left: ", f"[{index}] bad"
        ]
        log = place.lines(f"runs/a/logs/process-{index}.log")
        assert log == [f"{said[0]} {index}", "left: ", "bad"]
    ports = {re.search(r"--coordinator=127\.0\.0\.1:(\d+) ", line)[1]
             for line in place.lines("commands")}
    assert len(ports) == 1 and 20000 <= int(ports.pop()) < 32000


@pytest.mark.parametrize("code", [1, 2, 75, 130])
def test_one_that_fails_stops_the_others(place, code):
    does(place, 0, SAVES_AND_ENDS)
    does(place, 1, f'until [ -e "$PLACE/ready-0" ]; do sleep 0.05; done; exit {code}')
    ended = place.run("local.sh", *flags(SETTINGS))
    assert ended.code == code
    assert f"process 1 ended with code {code}" in ended.err
    assert place.lines("runs/a/logs/process-0.log")[-1] == "saved"


def test_a_person_must_act_whatever_came_first(place):
    does(place, 0, SAVES_AND_ENDS.replace("75", "2"))
    does(place, 1, 'until [ -e "$PLACE/ready-0" ]; do sleep 0.05; done; exit 75')
    assert place.run("local.sh", *flags(SETTINGS), "--retries=3").code == 2
    assert len(place.lines("commands")) == 2


def test_nothing_is_left_behind(place):
    leaves = 'sleep 300 >/dev/null 2>&1 & echo $! >"$PLACE/child-$index"; exit 0'
    does(place, 0, leaves)
    does(place, 1, leaves)
    assert place.run("local.sh", *flags(SETTINGS)).code == 0
    assert not any(alive(place.read(f"child-{index}").strip()) for index in (0, 1))


def test_what_does_not_stop_is_killed_after_the_time_of_grace(place):
    does(place, 0, """
        trap '' TERM
        sleep 300 & echo $! >"$PLACE/child"
        echo $$ >"$PLACE/ready-0"
        while :; do sleep 300; done
    """)
    does(place, 1, 'until [ -s "$PLACE/ready-0" ]; do sleep 0.05; done; exit 1')
    start = time.monotonic()
    ended = place.run("local.sh", *flags(SETTINGS), "--grace=1")
    assert ended.code == 1
    assert time.monotonic() - start < 12
    assert "process 0 ended with code 137" in ended.err
    assert not alive(place.read("ready-0").strip()) and not alive(place.read("child").strip())


@pytest.mark.parametrize(("code", "retries", "runs", "last"), [
    (75, 0, 1, 75), (75, 1, 2, 0), (1, 1, 2, 0), (2, 3, 1, 2),
])
def test_retries(place, code, retries, runs, last):
    does(place, 0, f'[ "$(wc -l <"$PLACE/started-0")" = 1 ] && exit {code}; exit 0')
    does(place, 1, 'until [ -e "$PLACE/started-0" ]; do sleep 0.05; done; exit 0')
    ended = place.run("local.sh", *flags(SETTINGS), f"--retries={retries}")
    assert ended.code == last
    assert len(place.lines("started-0")) == runs
    assert (f"code {code}: again, 1 of 1" in ended.err) == (runs == 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_go_to_every_process(place, number):
    does(place, 0, SAVES_AND_ENDS)
    does(place, 1, SAVES_AND_ENDS)
    process = place.start("local.sh", *flags(SETTINGS), "--retries=3")
    wait_for(place.folder / "ready-0", place.folder / "ready-1")
    process.send_signal(number)
    ended = place.end(process)
    assert ended.code == 75
    assert len(place.lines("commands")) == 2  # asked to stop: not run again
    for index in (0, 1):
        assert place.lines(f"runs/a/logs/process-{index}.log")[-1] == "saved"


def test_ended_before_it_could_save(place):
    body = 'touch "$PLACE/ready-$index"; exec sleep 300'
    does(place, 0, body)
    does(place, 1, body)
    process = place.start("local.sh", *flags(SETTINGS))
    wait_for(place.folder / "ready-0", place.folder / "ready-1")
    process.terminate()
    assert place.end(process).code == 75
