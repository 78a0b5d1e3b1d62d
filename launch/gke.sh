#!/usr/bin/env bash
# Submits a run to TPU slices of a GKE cluster, with xpk.
#
#   launch/gke.sh --project=my-project --zone=us-east5-a --cluster=my-cluster --workload=kv-bias \
#     --tpu-type=v5litepod-16 --slices=2 --processes=8 --image=REGISTRY/massact:tpu \
#     --storage=runs --config=configs/gpt2_124m.py:kv_bias --workdir=/runs/kv_bias \
#     --config.mesh=dcn=2,data=-1
#
# Options, each also a variable of the environment; after `--`, or as --config.NAME=VALUE, settings
# of `massact train`:
#   --project=ID           MASSACT_PROJECT
#   --zone=ZONE            MASSACT_ZONE             of the cluster
#   --cluster=NAME         MASSACT_CLUSTER          made before, with `xpk cluster create`
#   --workload=NAME        MASSACT_WORKLOAD         of this run: a-z, 0-9 and -, at most 40
#   --tpu-type=TYPE        MASSACT_TPU_TYPE         of one slice, such as v5litepod-16
#   --slices=N             MASSACT_SLICES           default 1
#   --processes=N          MASSACT_PROCESSES        hosts of all slices together
#   --image=NAME:TAG       MASSACT_IMAGE            of launch/Dockerfile with EXTRA=tpu, pushed
#   --storage=NAME         MASSACT_STORAGE          made with `xpk storage attach`; holds the workdir
#   --config=FILE[:ARG]    MASSACT_CONFIG
#   --workdir=DIR          MASSACT_WORKDIR          under the mount point of that storage
#   --capacity=KIND        MASSACT_CAPACITY         as the node pool is (default), spot or on-demand:
#                                                   for clusters that provision nodes by themselves
#   --max-restarts=N       MASSACT_MAX_RESTARTS     of all slices, for whatever cause (default 50)
#   --grace=SECONDS        MASSACT_GRACE            from SIGTERM to SIGKILL (default 120)
#   --xla-flags=FILE       MASSACT_XLA_FLAGS_FILE   default: launch/xla_flags/tpu.txt; or none
#   --dry-run              print the command of xpk, and run nothing
#
# Returns when the workload is submitted; `xpk workload list` and `kubectl logs` show how it goes.
# Kubernetes starts all slices again after a preemption, a signal, and the codes 75 and 1.

set -euo pipefail

LAUNCHER=gke.sh
LAUNCHER_FILE=${BASH_SOURCE[0]}
LAUNCH_DIR=$(cd "$(dirname "$LAUNCHER_FILE")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$LAUNCH_DIR/common.sh"

# shellcheck disable=SC2034 # read in common.sh
declare -A OPTIONS=(
  [project]=MASSACT_PROJECT
  [zone]=MASSACT_ZONE
  [cluster]=MASSACT_CLUSTER
  [workload]=MASSACT_WORKLOAD
  [tpu-type]=MASSACT_TPU_TYPE
  [slices]=MASSACT_SLICES
  [processes]=MASSACT_PROCESSES
  [image]=MASSACT_IMAGE
  [storage]=MASSACT_STORAGE
  [config]=MASSACT_CONFIG
  [workdir]=MASSACT_WORKDIR
  [capacity]=MASSACT_CAPACITY
  [max-restarts]=MASSACT_MAX_RESTARTS
  [grace]=MASSACT_GRACE
  [xla-flags]=MASSACT_XLA_FLAGS_FILE
)

# xpk restarts after 42 and 127-255 by itself, and after these.
readonly RESTART_ON=1,$EXIT_AGAIN

configure() {
  parse_options "$@"
  require project zone cluster workload tpu-type processes image storage config workdir
  : "${MASSACT_SLICES:=1}" "${MASSACT_MAX_RESTARTS:=50}" "${MASSACT_GRACE:=120}"
  : "${MASSACT_CAPACITY:=node-pool}"
  check_count slices 1
  check_count processes 1
  check_count max-restarts 0
  check_count grace 1
  check_choice capacity node-pool spot on-demand
  ((MASSACT_PROCESSES % MASSACT_SLICES == 0)) ||
    die "MASSACT_PROCESSES is $MASSACT_PROCESSES; expected: a multiple of the $MASSACT_SLICES slices"
  [[ $MASSACT_WORKLOAD =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "MASSACT_WORKLOAD is '$MASSACT_WORKLOAD'; expected: a-z, 0-9 and -, at most 40"
  [[ $MASSACT_WORKDIR == /* ]] || die "MASSACT_WORKDIR is $MASSACT_WORKDIR; expected: a path from /"
  require_command xpk "pip install xpk"
  train_command
  FLAGS=$(xla_flags tpu)
}

configure "$@"

# JAX finds coordinator and index in what GKE tells every host. `exec`, so that SIGTERM reaches it.
words=(
  xpk workload create
  "--project=$MASSACT_PROJECT" "--zone=$MASSACT_ZONE"
  "--cluster=$MASSACT_CLUSTER" "--workload=$MASSACT_WORKLOAD"
  "--tpu-type=$MASSACT_TPU_TYPE" "--num-slices=$MASSACT_SLICES"
  "--docker-image=$MASSACT_IMAGE" "--storage=$MASSACT_STORAGE"
  "--max-restarts=$MASSACT_MAX_RESTARTS" "--restart-on-exit-codes=$RESTART_ON"
  "--termination-grace-period-seconds=$MASSACT_GRACE"
  "--env=JAX_PLATFORMS=tpu,cpu" "--env=LIBTPU_INIT_ARGS=$FLAGS"
  "--command=exec $(quoted "${TRAIN[@]}" "--processes=$MASSACT_PROCESSES")"
)
case $MASSACT_CAPACITY in
  spot) words+=(--spot) ;;
  on-demand) words+=(--on-demand) ;;
esac
run "${words[@]}"
