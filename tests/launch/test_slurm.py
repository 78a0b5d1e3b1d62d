"""launch/slurm.sbatch with stand-ins for Slurm: the step, SIGTERM before the time-out, requeues."""

import re
import time

import pytest
from launch_fakes import LAUNCH, Place, flags

SETTINGS = {"config": "c.py:kv_bias", "workdir": "/shared/run", "processes": "16"}
GPU_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true "
    "--xla_gpu_first_collective_call_terminate_timeout_seconds=600"
)
STEP = "srun --ntasks=16 --kill-on-bad-exit=0 --wait=60 --label massact train " \
    "--config=c.py:kv_bias --workdir=/shared/run"


@pytest.fixture
def place(tmp_path):
    """A job of two tasks whose step ends with the code in $STEP_CODE."""
    place = Place(tmp_path)
    place.command("massact", "exit 0")
    place.command("scontrol", 'echo "scontrol $*" >>"$PLACE/calls"')
    place.command("scancel", 'echo "scancel $*" >>"$PLACE/calls"; kill -USR1 "$(<"$PLACE/step")"')
    place.command("srun", """
        env | grep -E '^(XLA_FLAGS|JAX_|MASSACT_)' | sort >"$PLACE/environment"
        echo "srun $*" >>"$PLACE/calls"
        exit "$STEP_CODE"
    """)
    place.env = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "STEP_CODE": "0"}
    return place


@pytest.fixture
def job(place):
    return flags(SETTINGS | {"processes": "2", "workdir": str(place.folder / "run")})


def requeues(place):
    return [line for line in place.lines("calls") if line.startswith("scontrol")]


def test_directives():
    head, _, _ = (LAUNCH / "slurm.sbatch").read_text().partition("\n\n")
    directives = re.findall(r"^#SBATCH (.+)$", head, re.MULTILINE)
    # Slurm reads them up to the first line that is no comment.
    assert all(line.startswith("#") for line in head.splitlines())
    assert directives == [
        "--job-name=massact", "--requeue", "--signal=B:TERM@120", "--open-mode=append",
        "--output=slurm-%j.out",
    ]


def test_dry_run_without_slurm(place):
    place.env = {}
    ended = place.run("slurm.sbatch", "--dry-run", *flags(SETTINGS), "--config.steps=5")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"env 'XLA_FLAGS={GPU_FLAGS}' JAX_PLATFORMS=cuda {STEP} --config.steps=5 --processes=16",
        "after code 75, at most 100 times: scontrol requeue SLURM_JOB_ID",
    ]
    assert not place.lines("calls")


def test_one_task_on_each_node(place):
    ended = place.run("slurm.sbatch", "--dry-run", *flags(SETTINGS), "--gpus-per-task=4")
    assert f"JAX_PLATFORMS=cuda JAX_LOCAL_DEVICE_IDS=0,1,2,3 {STEP}" in ended.out


@pytest.mark.parametrize("name", SETTINGS)
def test_half_configured(place, name):
    rest = {key: value for key, value in SETTINGS.items() if key != name}
    assert place.run("slurm.sbatch", *flags(rest)).refused() == (
        f"slurm.sbatch: MASSACT_{name.upper()} is not set; set it, or give --{name}=..."
    )


@pytest.mark.parametrize(("env", "said"), [
    ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set; submit with sbatch, or give --dry-run"),
    ({"SLURM_NTASKS": "4"}, "MASSACT_PROCESSES is 2; the job has 4 tasks"),
    ({"SLURM_NTASKS": ""}, "MASSACT_PROCESSES is 2; the job has 1 tasks"),
    ({"SLURM_GPUS_PER_TASK": "1"},
     "the job has sbatch's --gpus-per-task; use --gpus-per-node"),
])
def test_another_job_than_was_meant(place, job, env, said):
    place.env |= env
    assert place.run("slurm.sbatch", *job).refused() == f"slurm.sbatch: {said}"
    assert not place.lines("calls")


def test_a_step_that_finishes(place, job):
    place.env |= {"MASSACT_COORDINATOR": "left.over:1", "MASSACT_PROCESSES": "9"}
    ended = place.run("slurm.sbatch", *job, "--platform=cpu", "--xla-flags=none")
    assert ended.code == 0
    assert place.lines("calls") == [
        "srun --ntasks=2 --kill-on-bad-exit=0 --wait=60 --label massact train "
        f"--config=c.py:kv_bias --workdir={place.folder}/run --processes=2"
    ]
    # Nothing is left that would keep JAX from asking Slurm.
    assert place.lines("environment") == ["JAX_PLATFORMS=cpu", "XLA_FLAGS="]


def test_code_75_puts_the_job_back(place, job):
    place.env |= {"STEP_CODE": "75", "SLURM_RESTART_COUNT": "4"}
    ended = place.run("slurm.sbatch", *job, "--max-requeues=5")
    assert ended.code == 75
    assert requeues(place) == ["scontrol requeue 7"]
    place.env |= {"SLURM_RESTART_COUNT": "5"}
    ended = place.run("slurm.sbatch", *job, "--max-requeues=5")
    assert ended.code == 75 and "the job was put back 5 times" in ended.err
    assert requeues(place) == ["scontrol requeue 7"]


def test_code_2_does_not(place, job):
    place.env |= {"STEP_CODE": "2"}
    assert place.run("slurm.sbatch", *job).code == 2
    assert not requeues(place)


def test_other_codes_do_a_few_times(place, job):
    for code in (1, 134, 1):
        place.env |= {"STEP_CODE": str(code)}
        ended = place.run("slurm.sbatch", *job, "--max-failures=2")
        assert ended.code == code
    assert requeues(place) == ["scontrol requeue 7"] * 2
    assert "MASSACT_MAX_FAILURES is 2" in ended.err
    listed = place.lines("run/logs/slurm-7-failures")
    assert listed == [f"restart 0: code {code}" for code in (1, 134, 1)]


def test_sigterm_reaches_the_tasks_and_the_job_goes_back(place, job):
    place.command("srun", """
        trap 'sleep 0.5; exit 75' USR1  # what the tasks make of the signal that scancel sends
        trap 'exit 9' TERM              # Slurm's srun kills the tasks
        echo $$ >"$PLACE/step"
        for _ in {1..300}; do sleep 0.1; done
    """)
    process = place.start("slurm.sbatch", *job)
    while not place.read("step").strip():
        time.sleep(0.05)
    process.terminate()
    ended = place.end(process)
    assert ended.code == 75
    assert place.lines("calls") == ["scancel --signal=TERM 7", "scontrol requeue 7"]


def test_the_copy_that_slurm_makes_finds_the_rest(place, job):
    copy = place.folder / "slurm_script"
    copy.write_text((LAUNCH / "slurm.sbatch").read_text())
    place.env |= {"SLURM_SUBMIT_DIR": str(LAUNCH.parent)}
    assert place.run(copy, *job).code == 0
    place.env |= {"SLURM_SUBMIT_DIR": str(place.folder)}
    assert place.run(copy, *job).refused().startswith("slurm.sbatch: there is no common.sh in ")
    assert place.run(copy, *job, f"--launch-dir={LAUNCH}").code == 0
    assert len(place.lines("calls")) == 2
