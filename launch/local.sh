#!/usr/bin/env bash
# Trains with N processes on this machine.
#
#   launch/local.sh --processes=2 --config=configs/gpt2_tiny.py:kv_bias --workdir=runs/kv_bias \
#     --config.mesh.data=2
#
# Options, each also a variable of the environment; after `--`, or as --config.NAME=VALUE, settings
# of `massact train`:
#   --config=FILE[:ARG]       MASSACT_CONFIG
#   --workdir=DIR             MASSACT_WORKDIR              the logs of process I: DIR/logs/process-I.log
#   --processes=N             MASSACT_PROCESSES
#   --platform=NAME           MASSACT_PLATFORM             cpu (default), gpu or tpu
#   --devices-per-process=N   MASSACT_DEVICES_PER_PROCESS  cpu: 1; gpu: needed for several processes
#   --retries=N               MASSACT_RETRIES              times to run again what ended with any code
#                                                          but 0 and 2 (default 0)
#   --grace=SECONDS           MASSACT_GRACE                from SIGTERM to SIGKILL (default 120)
#   --port=PORT               MASSACT_PORT                 of process 0; default: one that is free
#   --xla-flags=FILE          MASSACT_XLA_FLAGS_FILE       default: launch/xla_flags/PLATFORM.txt; none
#   --dry-run                 print what would be run, and run nothing
#
# SIGTERM and Ctrl-C go to every process, so that they save a checkpoint. When one fails, the others
# get SIGTERM. The exit code is 2 where a process says that a person must act, else that of the first
# one that failed: 75 means that the same command goes on.

set -euo pipefail

LAUNCHER=local.sh
LAUNCHER_FILE=${BASH_SOURCE[0]}
LAUNCH_DIR=$(cd "$(dirname "$LAUNCHER_FILE")" && pwd)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$LAUNCH_DIR/common.sh"

# shellcheck disable=SC2034 # read in common.sh
declare -A OPTIONS=(
  [config]=MASSACT_CONFIG
  [workdir]=MASSACT_WORKDIR
  [processes]=MASSACT_PROCESSES
  [platform]=MASSACT_PLATFORM
  [devices-per-process]=MASSACT_DEVICES_PER_PROCESS
  [retries]=MASSACT_RETRIES
  [grace]=MASSACT_GRACE
  [port]=MASSACT_PORT
  [xla-flags]=MASSACT_XLA_FLAGS_FILE
)

configure() {
  parse_options "$@"
  require config workdir processes
  : "${MASSACT_PLATFORM:=cpu}" "${MASSACT_RETRIES:=0}" "${MASSACT_GRACE:=120}"
  : "${MASSACT_DEVICES_PER_PROCESS=}" "${MASSACT_PORT=}"
  check_count processes 1
  check_count retries 0
  check_count grace 1
  check_choice platform cpu gpu tpu
  case $MASSACT_PLATFORM in
    cpu) : "${MASSACT_DEVICES_PER_PROCESS:=1}" ;;
    gpu) ((MASSACT_PROCESSES == 1)) || require devices-per-process ;;
    tpu)
      if ((MASSACT_PROCESSES > 1)) || [[ -n $MASSACT_DEVICES_PER_PROCESS ]]; then
        die "on a TPU host one process drives every chip; expected: --processes=1 alone"
      fi
      ;;
  esac
  [[ -z $MASSACT_DEVICES_PER_PROCESS ]] || check_count devices-per-process 1
  if [[ -n $MASSACT_PORT ]]; then
    check_count port 1
    ((MASSACT_PORT < 65536)) || die "MASSACT_PORT is $MASSACT_PORT; expected: at most 65535"
  fi
  require_command massact "pip install it, or activate its environment"
  train_command
  FLAGS=$(xla_flags "$MASSACT_PLATFORM")
  [[ $MASSACT_PLATFORM == gpu ]] && check_gpus
  return 0
}

check_gpus() {
  local needed=$((MASSACT_PROCESSES * ${MASSACT_DEVICES_PER_PROCESS:-0}))
  GPUS=()
  if [[ -n ${CUDA_VISIBLE_DEVICES-} ]]; then
    IFS=, read -ra GPUS <<<"$CUDA_VISIBLE_DEVICES"
  else
    local i
    for ((i = 0; i < needed; i++)); do GPUS+=("$i"); done
  fi
  ((needed <= ${#GPUS[@]})) ||
    die "CUDA_VISIBLE_DEVICES is $CUDA_VISIBLE_DEVICES; needed: $needed devices"
}

# environment_of INDEX: NAME=VALUE for one process, into ENVIRONMENT. What the person has put into
# XLA_FLAGS comes last, and so wins.
environment_of() {
  local devices=$MASSACT_DEVICES_PER_PROCESS forced=
  case $MASSACT_PLATFORM in
    cpu)
      ((devices == 1)) || forced="--xla_force_host_platform_device_count=$devices"
      ENVIRONMENT=(JAX_PLATFORMS=cpu "XLA_FLAGS=$(join "$FLAGS" "$forced" "${XLA_FLAGS-}")")
      ;;
    gpu)
      ENVIRONMENT=(JAX_PLATFORMS=cuda "XLA_FLAGS=$(join "$FLAGS" "${XLA_FLAGS-}")")
      if [[ -n $devices ]]; then
        local mine=("${GPUS[@]:$1 * devices:devices}")
        ENVIRONMENT+=("CUDA_VISIBLE_DEVICES=$(IFS=, && printf %s "${mine[*]}")")
      fi
      ;;
    tpu)
      ENVIRONMENT=(JAX_PLATFORMS=tpu "LIBTPU_INIT_ARGS=$(join "$FLAGS" "${LIBTPU_INIT_ARGS-}")")
      ;;
  esac
}

# A port of the loopback device on which nobody listens.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  printf '%s\n' "$port"
}

# command_of INDEX PORT: the words of one process, into COMMAND.
command_of() {
  environment_of "$1"
  COMMAND=(env "${ENVIRONMENT[@]}" "${TRAIN[@]}")
  if ((MASSACT_PROCESSES > 1)); then
    COMMAND+=("--coordinator=127.0.0.1:$2" "--processes=$MASSACT_PROCESSES" "--process=$1")
  fi
}

print_commands() {
  local i
  for ((i = 0; i < MASSACT_PROCESSES; i++)); do
    command_of "$i" "${MASSACT_PORT:-PORT}"
    quoted "${COMMAND[@]}"
  done
}

start_all() {
  local i port=$MASSACT_PORT out logs=$MASSACT_WORKDIR/logs
  mkdir -p "$logs" || die "cannot make the folder $logs"
  [[ -n $port ]] || port=$(free_port)
  PIDS=() READERS=()
  # A process group each: Ctrl-C reaches this script alone, and SIGKILL all that a process started.
  set -m
  for ((i = 0; i < MASSACT_PROCESSES; i++)); do
    command_of "$i" "$port"
    # The reader outlives a Ctrl-C, so that the last words of its process are kept.
    exec {out}> >(trap '' INT TERM && tee -a "$logs/process-$i.log" | sed -u "s/^/[$i] /")
    READERS+=("$!")
    "${COMMAND[@]}" >&"$out" 2>&1 &
    PIDS+=("$!")
    exec {out}>&-
  done
  set +m
}

# stop_all: asks the processes that still run to end, and, after the time of grace, ends them.
stop_all() {
  local i
  if [[ -z $DEADLINE ]]; then
    DEADLINE=$((SECONDS + MASSACT_GRACE))
    for i in "${!PIDS[@]}"; do
      if [[ -z ${CODES[i]-} ]]; then kill -TERM "${PIDS[i]}" 2>/dev/null || :; fi
    done
  elif ((SECONDS >= DEADLINE)); then
    for i in "${!PIDS[@]}"; do kill_group "${PIDS[i]}"; done
  fi
}

kill_group() { kill -KILL -- "-$1" 2>/dev/null || :; }

# collect: notes the code of every process that has ended, and of the first that failed.
collect() {
  local i code
  for i in "${!PIDS[@]}"; do
    [[ -z ${CODES[i]-} ]] || continue
    kill -0 "${PIDS[i]}" 2>/dev/null && continue
    code=0
    wait "${PIDS[i]}" || code=$?
    kill_group "${PIDS[i]}" # what it may have left behind
    # Ended by the SIGTERM it was sent: it had nothing to save yet.
    [[ $code == "$EXIT_TERMINATED" && -n $DEADLINE ]] && code=$EXIT_AGAIN
    CODES[i]=$code
    ((code == 0)) && continue
    say "process $i ended with code $code"
    [[ $CODE == 0 || $code == "$EXIT_USER_ERROR" ]] && CODE=$code
  done
  return 0
}

# wait_all: until every process has ended; the code of the whole is in CODE.
wait_all() {
  while ((${#CODES[@]} < MASSACT_PROCESSES)); do
    collect
    if [[ -n $ASKED || $CODE != 0 ]]; then stop_all; fi
    sleep 0.2
  done
  wait "${READERS[@]}" || :
}

run_once() {
  CODES=() CODE=0 DEADLINE=
  start_all
  wait_all
}

configure "$@"
if [[ -n $DRY_RUN ]]; then
  print_commands
  exit 0
fi

ASKED=
trap 'ASKED=1' TERM INT
tries=0
while :; do
  run_once
  [[ $CODE == 0 || $CODE == "$EXIT_USER_ERROR" || -n $ASKED ]] && break
  ((tries < MASSACT_RETRIES)) || break
  tries=$((tries + 1))
  say "code $CODE: again, $tries of $MASSACT_RETRIES"
done
exit "$CODE"
