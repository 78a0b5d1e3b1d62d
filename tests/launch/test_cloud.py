"""launch/tpu_vm.sh and launch/gke.sh with stand-ins for gcloud and xpk."""

import time

import pytest
from launch_fakes import Place, flags

TPU = {
    "project": "my-project", "zone": "us-east5-a", "name": "kv-bias",
    "accelerator-type": "v5litepod-16", "runtime-version": "v2-alpha-tpuv5-lite",
    "processes": "4", "setup": "sudo mount nfs:/runs /mnt", "config": "c.py:kv_bias",
    "workdir": "/mnt/run",
}
GKE = {
    "project": "my-project", "zone": "us-east5-a", "cluster": "my-cluster", "workload": "kv-bias",
    "tpu-type": "v5litepod-16", "processes": "8", "image": "registry/massact:tpu",
    "storage": "runs", "config": "c.py:kv_bias", "workdir": "/runs/kv_bias",
}
WHERE = "--project=my-project --zone=us-east5-a"
TPU_FLAGS = (
    "--xla_tpu_enable_async_collective_fusion=true "
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true "
    "--xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true "
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true "
    "--xla_tpu_data_parallel_opt_different_sized_ops=true"
)
# The queue of TPUs: $PLACE/state is missing, or holds the state; a request is granted once it has
# been looked at. What the workers do is in $PLACE/workers.
GCLOUD = """
    state=$PLACE/state
    verb=$4 name=$5
    echo "$verb $name" >>"$PLACE/calls"
    printf '%s\\n' "$*" >>"$PLACE/words"
    case "$3 $verb" in
      "tpu-vm ssh") source "$PLACE/workers" ;;
      "queued-resources create")
        [ -e "$PLACE/refuse" ] && exit 1
        echo WAITING_FOR_RESOURCES >"$state" ;;
      "queued-resources delete") rm "$state" ;;
      "queued-resources describe")
        if [ -e "$PLACE/offline" ]; then echo "ERROR: no network" >&2; exit 1; fi
        if [ ! -e "$state" ]; then echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; fi
        cat "$state"
        if [ "$(<"$state")" = WAITING_FOR_RESOURCES ]; then echo ACTIVE >"$state"; fi ;;
      *) exit 99 ;;
    esac
"""


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    place.command("gcloud", GCLOUD)
    place.command("xpk", 'printf "%s\\n" "$@" >"$PLACE/words"; exit "$XPK_CODE"')
    place.env = {"MASSACT_POLL": "1", "XPK_CODE": "0"}
    return place


def workers(place, body):
    (place.folder / "workers").write_text(body)


def calls(place):
    return [line.removesuffix(" kv-bias") for line in place.lines("calls")]


def test_tpu_dry_run(place):
    ended = place.run("tpu_vm.sh", "--dry-run", *flags(TPU), "--config.steps=5")
    remote = f"""set -e
sudo mount nfs:/runs /mnt
old=$(cat /tmp/massact-kv-bias.pid 2>/dev/null || echo none)
if grep -qa massact "/proc/$old/cmdline" 2>/dev/null; then kill -TERM "$old"; fi
for _ in $(seq 300); do kill -0 "$old" 2>/dev/null || break; sleep 1; done
echo $$ > /tmp/massact-kv-bias.pid
exec env JAX_PLATFORMS=tpu,cpu '\\''LIBTPU_INIT_ARGS={TPU_FLAGS}'\\'' massact train \
--config=c.py:kv_bias --workdir=/mnt/run --config.steps=5 --processes=4"""
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"""# unless kv-bias is there:
gcloud compute tpus queued-resources create kv-bias {WHERE} --accelerator-type=v5litepod-16 \
--runtime-version=v2-alpha-tpuv5-lite --node-id=kv-bias --spot
# every 1 s, until it is ACTIVE:
gcloud compute tpus queued-resources describe kv-bias {WHERE} '--format=value(state.state)'
# then, and again after code 75:
gcloud compute tpus tpu-vm ssh kv-bias {WHERE} --worker=all '--command={remote}'
# when it is SUSPENDED or FAILED, before it is asked for again (at most 50 times), and in the end:
gcloud compute tpus queued-resources delete kv-bias {WHERE} --force --quiet
"""
    assert not place.lines("calls")


def test_several_slices(place):
    more = ["--slices=2", "--capacity=reserved"]
    out = place.run("tpu_vm.sh", "--dry-run", *flags(TPU), *more).out
    assert "--node-count=2 --node-prefix=kv-bias --reserved\n" in out
    for node in ("kv-bias-0", "kv-bias-1"):
        assert f"tpu-vm ssh {node} {WHERE} --worker=all '--command=set -e\n" in out
    assert "spot" not in place.run("tpu_vm.sh", "--dry-run", *flags(TPU),
                                   "--capacity=on-demand").out


@pytest.mark.parametrize(("script", "name"), [
    *(("tpu_vm.sh", name) for name in TPU), *(("gke.sh", name) for name in GKE),
])
def test_half_configured(place, script, name):
    settings = TPU if script == "tpu_vm.sh" else GKE
    rest = {key: value for key, value in settings.items() if key != name}
    variable = "MASSACT_" + name.upper().replace("-", "_")
    assert place.run(script, *flags(rest)).refused() == (
        f"{script}: {variable} is not set; set it, or give --{name}=..."
    )
    assert not place.lines("words")


@pytest.mark.parametrize(("script", "argument", "said"), [
    ("tpu_vm.sh", "--name=KV", "MASSACT_NAME is 'KV'; expected: a-z, 0-9 and -, at most 40"),
    ("tpu_vm.sh", "--workdir=run", "MASSACT_WORKDIR is run; expected: a path from /"),
    ("tpu_vm.sh", "--slices=3", "MASSACT_PROCESSES is 4; expected: a multiple of the 3 slices"),
    ("tpu_vm.sh", "--capacity=cheap",
     "MASSACT_CAPACITY is 'cheap'; expected for --capacity: spot on-demand reserved"),
    ("gke.sh", "--workload=kv_bias",
     "MASSACT_WORKLOAD is 'kv_bias'; expected: a-z, 0-9 and -, at most 40"),
    ("gke.sh", "--workdir=run", "MASSACT_WORKDIR is run; expected: a path from /"),
    ("gke.sh", "--slices=3", "MASSACT_PROCESSES is 8; expected: a multiple of the 3 slices"),
])
def test_wrong_settings(place, script, argument, said):
    settings = TPU if script == "tpu_vm.sh" else GKE
    assert place.run(script, *flags(settings), argument).refused() == f"{script}: {said}"
    assert not place.lines("words")


def test_a_preemption(place):
    workers(place, """
        if [ ! -e "$PLACE/preempted" ]; then
          touch "$PLACE/preempted"; echo SUSPENDED >"$state"; exit 255
        fi
    """)
    ended = place.run("tpu_vm.sh", *flags(TPU))
    assert ended.code == 0, ended.err
    assert calls(place) == [
        "describe", "create", "describe", "describe", "ssh",
        "describe", "describe", "delete",
        "describe", "create", "describe", "describe", "ssh", "delete",
    ]
    assert "kv-bias is SUSPENDED: restart 1 of at most 50" in ended.err
    training = [line for line in place.lines("words") if line.startswith("exec env")]
    assert len(training) == 2 and len(set(training)) == 1  # the same command


def test_preempted_too_often(place):
    workers(place, 'echo SUSPENDED >"$state"; exit 255')
    ended = place.run("tpu_vm.sh", *flags(TPU), "--max-restarts=1")
    assert ended.code == 75
    assert calls(place).count("ssh") == 2 and calls(place)[-1] == "delete"


@pytest.mark.parametrize(("code", "runs", "more"), [
    (75, 2, ["--max-restarts=1"]), (2, 1, []), (1, 2, ["--max-failures=1"]),
])
def test_codes_of_the_workers(place, code, runs, more):
    (place.folder / "state").write_text("ACTIVE\n")
    workers(place, f"exit {code}")
    ended = place.run("tpu_vm.sh", *flags(TPU), *more)
    assert ended.code == code
    assert calls(place).count("ssh") == runs
    assert "create" not in calls(place) and calls(place)[-1] == "delete"


def test_the_worst_code_of_two_slices(place):
    (place.folder / "state").write_text("ACTIVE\n")
    workers(place, 'if [ "$name" = kv-bias-0 ]; then exit 75; else sleep 0.3; exit 2; fi')
    ended = place.run("tpu_vm.sh", *flags(TPU), "--slices=2", "--keep=always")
    assert ended.code == 2 and "kv-bias is kept, and costs money" in ended.err
    assert sorted(place.lines("calls")) == ["describe kv-bias", "ssh kv-bias-0", "ssh kv-bias-1"]


@pytest.mark.parametrize(("trouble", "said"), [
    ("refuse", "gcloud refused the request: failure 2, allowed are 1"),
    ("offline", "gcloud cannot say how kv-bias is: failure 2, allowed are 1"),
])
def test_gcloud_that_does_not_work(place, trouble, said):
    (place.folder / trouble).touch()
    ended = place.run("tpu_vm.sh", *flags(TPU), "--max-failures=1")
    assert ended.code == 2 and said in ended.err
    assert "ssh" not in calls(place) and "delete" not in calls(place)


def test_asked_to_stop(place):
    (place.folder / "state").write_text("ACTIVE\n")
    workers(place, """
        case "$*" in
          *"exec env"*) echo $$ >"$PLACE/training"; trap 'exit 75' USR1
            for _ in {1..300}; do sleep 0.1; done ;;
          *"kill -TERM"*) kill -USR1 "$(<"$PLACE/training")" ;;
        esac
    """)
    process = place.start("tpu_vm.sh", *flags(TPU))
    while not place.read("training").strip():
        time.sleep(0.05)
    process.terminate()
    ended = place.end(process)
    assert ended.code == 75
    assert calls(place) == ["describe", "ssh", "ssh"]
    assert ended.err.splitlines()[-2:] == [
        "tpu_vm.sh: left kv-bias in state ACTIVE, where it costs money; to delete it:",
        f"gcloud compute tpus queued-resources delete kv-bias {WHERE} --force --quiet",
    ]


XPK = [
    "workload", "create", "--project=my-project", "--zone=us-east5-a", "--cluster=my-cluster",
    "--workload=kv-bias", "--tpu-type=v5litepod-16", "--num-slices=2",
    "--docker-image=registry/massact:tpu", "--storage=runs", "--max-restarts=50",
    "--restart-on-exit-codes=1,75", "--termination-grace-period-seconds=120",
    "--env=JAX_PLATFORMS=tpu,cpu", f"--env=LIBTPU_INIT_ARGS={TPU_FLAGS}",
    "--command=exec massact train --config=c.py:kv_bias --workdir=/runs/kv_bias --config.steps=5 "
    "--processes=8", "--spot",
]
GKE_ARGUMENTS = [*flags(GKE), "--slices=2", "--capacity=spot", "--config.steps=5"]


def test_gke_dry_run(place):
    ended = place.run("gke.sh", "--dry-run", *GKE_ARGUMENTS)
    quoted = [f"'{word}'" if " " in word else word for word in XPK]
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"xpk {' '.join(quoted)}\n"
    assert not place.lines("words")


@pytest.mark.parametrize("code", [0, 3])
def test_gke_submits(place, code):
    place.env |= {"XPK_CODE": str(code)}
    assert place.run("gke.sh", *GKE_ARGUMENTS).code == code
    assert place.lines("words") == XPK
