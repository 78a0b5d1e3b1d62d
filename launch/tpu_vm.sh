#!/usr/bin/env bash
# Trains on Cloud TPU VMs: asks for them in the queue, runs on all workers, and does it again after a
# preemption.
#
#   launch/tpu_vm.sh --project=my-project --zone=us-east5-a --name=kv-bias \
#     --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --processes=4 \
#     --setup='sudo mount -t nfs SERVER:/runs /mnt && pip install "jax_massact[tpu]"' \
#     --config=configs/gpt2_124m.py:kv_bias --workdir=/mnt/kv_bias --config.mesh.data=16
#
# Options, each also a variable of the environment; after `--`, or as --config.NAME=VALUE, settings
# of `massact train`:
#   --project=ID              MASSACT_PROJECT
#   --zone=ZONE               MASSACT_ZONE
#   --name=NAME               MASSACT_NAME              of the queued resource and its nodes
#   --accelerator-type=TYPE   MASSACT_ACCELERATOR_TYPE  of one slice
#   --runtime-version=NAME    MASSACT_RUNTIME_VERSION   the image of the VMs, for that type
#   --slices=N                MASSACT_SLICES            default 1
#   --processes=N             MASSACT_PROCESSES         workers of all slices together
#   --setup=COMMAND           MASSACT_SETUP             run on every worker before training: mounts
#                                                       the workdir, installs; a VM comes empty
#   --config=FILE[:ARG]       MASSACT_CONFIG
#   --workdir=DIR             MASSACT_WORKDIR           on a file system that every worker sees
#   --capacity=KIND           MASSACT_CAPACITY          spot (default), on-demand or reserved
#   --max-restarts=N          MASSACT_MAX_RESTARTS      after preemptions and code 75 (default 50)
#   --max-failures=N          MASSACT_MAX_FAILURES      other codes, refused requests (default 3)
#   --poll=SECONDS            MASSACT_POLL              between two looks at the state (default 30)
#   --keep=WHEN               MASSACT_KEEP              the TPUs in the end: never (default) or always
#   --xla-flags=FILE          MASSACT_XLA_FLAGS_FILE    default: launch/xla_flags/tpu.txt; or none
#   --dry-run                 print the commands of gcloud, and run nothing
#
# Needs gcloud, logged in, and an SSH key in the agent: ssh-add ~/.ssh/google_compute_engine. It must
# go on running while the TPUs train: start it on a small VM, inside tmux. Started again, it takes up
# what it finds. SIGTERM and Ctrl-C let the workers save, and leave the TPUs, which cost money.

set -euo pipefail

LAUNCHER=tpu_vm.sh
LAUNCHER_FILE=${BASH_SOURCE[0]}
LAUNCH_DIR=$(cd "$(dirname "$LAUNCHER_FILE")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$LAUNCH_DIR/common.sh"

# shellcheck disable=SC2034 # read in common.sh
declare -A OPTIONS=(
  [project]=MASSACT_PROJECT
  [zone]=MASSACT_ZONE
  [name]=MASSACT_NAME
  [accelerator-type]=MASSACT_ACCELERATOR_TYPE
  [runtime-version]=MASSACT_RUNTIME_VERSION
  [slices]=MASSACT_SLICES
  [processes]=MASSACT_PROCESSES
  [setup]=MASSACT_SETUP
  [config]=MASSACT_CONFIG
  [workdir]=MASSACT_WORKDIR
  [capacity]=MASSACT_CAPACITY
  [max-restarts]=MASSACT_MAX_RESTARTS
  [max-failures]=MASSACT_MAX_FAILURES
  [poll]=MASSACT_POLL
  [keep]=MASSACT_KEEP
  [xla-flags]=MASSACT_XLA_FLAGS_FILE
)

configure() {
  parse_options "$@"
  require project zone name accelerator-type runtime-version processes setup config workdir
  : "${MASSACT_SLICES:=1}" "${MASSACT_CAPACITY:=spot}" "${MASSACT_KEEP:=never}"
  : "${MASSACT_MAX_RESTARTS:=50}" "${MASSACT_MAX_FAILURES:=3}" "${MASSACT_POLL:=30}"
  check_count slices 1
  check_count processes 1
  check_count max-restarts 0
  check_count max-failures 0
  check_count poll 1
  check_choice capacity spot on-demand reserved
  check_choice keep never always
  ((MASSACT_PROCESSES % MASSACT_SLICES == 0)) ||
    die "MASSACT_PROCESSES is $MASSACT_PROCESSES; expected: a multiple of the $MASSACT_SLICES slices"
  [[ $MASSACT_NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "MASSACT_NAME is '$MASSACT_NAME'; expected: a-z, 0-9 and -, at most 40"
  [[ $MASSACT_WORKDIR == /* ]] || die "MASSACT_WORKDIR is $MASSACT_WORKDIR; expected: a path from /"
  require_command gcloud "install the Google Cloud CLI"
  train_command
  FLAGS=$(xla_flags tpu)
  WHERE=("--project=$MASSACT_PROJECT" "--zone=$MASSACT_ZONE")
  NODES=("$MASSACT_NAME")
  if ((MASSACT_SLICES > 1)); then
    local i
    NODES=()
    for ((i = 0; i < MASSACT_SLICES; i++)); do NODES+=("$MASSACT_NAME-$i"); done
  fi
}

queued_resources() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$MASSACT_NAME" "${WHERE[@]}" "$@"
}

request() {
  local words=(
    "--accelerator-type=$MASSACT_ACCELERATOR_TYPE" "--runtime-version=$MASSACT_RUNTIME_VERSION"
  )
  if ((MASSACT_SLICES > 1)); then
    words+=("--node-count=$MASSACT_SLICES" "--node-prefix=$MASSACT_NAME")
  else
    words+=("--node-id=$MASSACT_NAME")
  fi
  case $MASSACT_CAPACITY in
    spot) words+=(--spot) ;;
    reserved) words+=(--reserved) ;;
  esac
  queued_resources create "${words[@]}"
}

describe() { queued_resources describe "--format=value(state.state)"; }

# --force deletes the nodes with it.
delete() { queued_resources delete --force --quiet; }

# The state of the queued resource, into STATE: MISSING where there is none, UNKNOWN where gcloud
# could not say.
look() {
  local said
  if said=$(describe 2>&1); then
    STATE=${said##*$'\n'}
  elif [[ $said == *NOT_FOUND* ]]; then
    STATE=MISSING
  else
    STATE=UNKNOWN
    say "$said"
  fi
}

# on_all COMMAND: on every worker of every slice at once; the code goes to CODE.
on_all() {
  local node code pids=()
  for node in "${NODES[@]}"; do
    local words=(gcloud compute tpus tpu-vm ssh "$node" "${WHERE[@]}" --worker=all "--command=$1")
    if [[ -n $DRY_RUN ]]; then
      quoted "${words[@]}"
    else
      "${words[@]}" &
      pids+=("$!")
    fi
  done
  CODE=0
  for node in "${!pids[@]}"; do
    # A signal ends `wait`, not what it waits for.
    while kill -0 "${pids[node]}" 2>/dev/null; do wait "${pids[node]}" || :; done
    code=0
    wait "${pids[node]}" || code=$?
    # gcloud ends with the code of its first worker that failed.
    if [[ $CODE == 0 || $code == "$EXIT_USER_ERROR" ]]; then CODE=$code; fi
  done
}

# The command of one worker. JAX finds coordinator and index in the metadata of the VM. A run that a
# lost connection left behind still holds the chips, and is ended first; `exec` makes the number in
# the file that of `massact`.
remote_train() {
  local pid=/tmp/massact-$MASSACT_NAME.pid
  cat <<END
set -e
$MASSACT_SETUP
$(remote_stop)
for _ in \$(seq 300); do kill -0 "\$old" 2>/dev/null || break; sleep 1; done
echo \$\$ > $pid
exec env $(quoted "JAX_PLATFORMS=tpu,cpu" "LIBTPU_INIT_ARGS=$FLAGS" "${TRAIN[@]}" \
    "--processes=$MASSACT_PROCESSES")
END
}

remote_stop() {
  local pid=/tmp/massact-$MASSACT_NAME.pid
  cat <<END
old=\$(cat $pid 2>/dev/null || echo none)
if grep -qa massact "/proc/\$old/cmdline" 2>/dev/null; then kill -TERM "\$old"; fi
END
}

print_commands() {
  printf '# unless %s is there:\n' "$MASSACT_NAME"
  request
  printf '# every %s s, until it is ACTIVE:\n' "$MASSACT_POLL"
  describe
  printf '# then, and again after code 75:\n'
  on_all "$(remote_train)"
  printf '# when it is SUSPENDED or FAILED, before it is asked for again (at most %s times)' \
    "$MASSACT_MAX_RESTARTS"
  [[ $MASSACT_KEEP == always ]] || printf ', and in the end'
  printf ':\n'
  delete
}

finish() {
  if [[ $MASSACT_KEEP == never ]]; then
    delete || say "could not delete $MASSACT_NAME, which may still cost money"
  else
    say "$MASSACT_NAME is kept, and costs money"
  fi
  exit "$1"
}

# pause: waits for the next look; a signal ends it.
pause() {
  sleep "$MASSACT_POLL" &
  wait "$!" || :
}

# shellcheck disable=SC2317,SC2329 # a trap calls it
stop() {
  ASKED=1
  say "asked to stop: the workers save and end"
  if [[ $STATE == ACTIVE ]]; then
    # In a function of its own: the loop below still waits for the training itself.
    (on_all "$(remote_stop)") || :
  fi
}

leave() {
  trap - TERM INT
  say "left $MASSACT_NAME in state $STATE, where it costs money; to delete it:"
  DRY_RUN=1
  delete >&2
  exit "$EXIT_AGAIN"
}

# train: runs on all workers once, and decides what follows from the code.
train() {
  on_all "$(remote_train)"
  case $CODE in
    0 | "$EXIT_USER_ERROR") finish "$CODE" ;;
    "$EXIT_AGAIN") [[ -n $ASKED ]] || count_restart "code $CODE" ;;
    *)
      # A preemption ends the connections, too.
      look
      [[ $STATE == ACTIVE ]] || return 0
      count_failure "code $CODE while the TPUs are there" || finish "$CODE"
      ;;
  esac
}

count_restart() {
  restarts=$((restarts + 1))
  say "$1: restart $restarts of at most $MASSACT_MAX_RESTARTS"
  ((restarts <= MASSACT_MAX_RESTARTS)) || finish "$EXIT_AGAIN"
}

count_failure() {
  failures=$((failures + 1))
  say "$1: failure $failures, allowed are $MASSACT_MAX_FAILURES"
  ((failures <= MASSACT_MAX_FAILURES))
}

ask_for_tpus() {
  request && return
  count_failure "gcloud refused the request" || exit "$EXIT_USER_ERROR"
  pause
}

# renew: makes room for a new request, in place of TPUs that were taken away.
renew() {
  count_restart "$MASSACT_NAME is $STATE"
  delete || pause
}

configure "$@"
if [[ -n $DRY_RUN ]]; then
  print_commands
  exit 0
fi

ASKED='' STATE=UNKNOWN restarts=0 failures=0
trap stop TERM INT
while [[ -z $ASKED ]]; do
  look
  case $STATE in
    MISSING) ask_for_tpus ;;
    ACTIVE) train ;;
    SUSPENDED | FAILED) renew ;;
    UNKNOWN)
      count_failure "gcloud cannot say how $MASSACT_NAME is" || exit "$EXIT_USER_ERROR"
      pause
      ;;
    *) pause ;;
  esac
done
leave
