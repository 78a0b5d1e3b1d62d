# shellcheck shell=bash disable=SC2034 # what is set here is read by the launchers
# What the launchers share. It is sourced, never run; it starts nothing.
#
# A launcher declares OPTIONS, from the name of an option to the variable that holds it, and calls
# `parse_options "$@"`. What is a setting of `massact train` ends up in TRAIN_ARGS.

# The exit codes of `massact train`.
readonly EXIT_USER_ERROR=2 # a person must put it right: never run again
readonly EXIT_AGAIN=75     # EX_TEMPFAIL: stopped, or lost a peer; the same command goes on
# What bash makes of a process that SIGTERM ended before it could catch it.
readonly EXIT_TERMINATED=143

DRY_RUN=
TRAIN_ARGS=()

say() { printf '%s: %s\n' "$LAUNCHER" "$*" >&2; }

die() {
  say "$*"
  exit "$EXIT_USER_ERROR"
}

# The comment at the head of the launcher is its help.
usage() { sed -n '2,/^$/ { s/^# \{0,1\}//; /^SBATCH/d; p; }' "$1"; }

# parse_options ARGUMENT...: sets what OPTIONS names, DRY_RUN and TRAIN_ARGS.
parse_options() {
  local name
  while (($#)); do
    case $1 in
      -h | --help)
        usage "$LAUNCHER_FILE"
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --)
        shift
        TRAIN_ARGS+=("$@")
        return
        ;;
      --config.*=*) TRAIN_ARGS+=("$1") ;;
      --*=*)
        name=${1%%=*}
        name=${name#--}
        [[ -n ${OPTIONS[$name]-} ]] || die "there is no option --$name; see --help"
        printf -v "${OPTIONS[$name]}" %s "${1#*=}"
        ;;
      *) die "unexpected argument $1; expected: --NAME=VALUE, --config.NAME=VALUE or --dry-run" ;;
    esac
    shift
  done
}

# require OPTION...: refuses to start while one of them has no value.
require() {
  local name variable
  for name; do
    variable=${OPTIONS[$name]}
    [[ -n ${!variable-} ]] || die "$variable is not set; set it, or give --$name=..."
  done
}

# check_count OPTION LEAST: refuses what is not a whole number of at least LEAST.
check_count() {
  local variable=${OPTIONS[$1]}
  local value=${!variable}
  if ! [[ $value =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((value < $2)); then
    die "$variable is '$value'; expected: a whole number of at least $2"
  fi
}

# check_choice OPTION VALUE...
check_choice() {
  local option=$1 variable=${OPTIONS[$1]} value
  shift
  for value; do
    [[ ${!variable} == "$value" ]] && return
  done
  die "$variable is '${!variable}'; expected for --$option: $*"
}

require_command() {
  [[ -n $DRY_RUN ]] || command -v "$1" >/dev/null || die "there is no command $1; $2"
}

# quoted WORD...: the words as one line that a shell reads back as the same words.
quoted() {
  local word line=
  for word; do
    # What needs no quotes stays as people write it; %q would escape commas, too.
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+=" $word"
    else
      line+=" '${word//\'/\'\\\'\'}'"
    fi
  done
  printf '%s\n' "${line# }"
}

# run WORD...: runs a command, or, in a dry run, prints it.
run() {
  if [[ -n $DRY_RUN ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# train_command: the words of `massact train` go to TRAIN.
train_command() {
  TRAIN=(massact train "--config=$MASSACT_CONFIG" "--workdir=$MASSACT_WORKDIR" "${TRAIN_ARGS[@]}")
  # `massact train` reads these, too. Each launcher says in flags what a process is, so that nothing
  # left over in the environment can contradict it.
  export -n MASSACT_PROCESSES
  unset MASSACT_COORDINATOR MASSACT_PROCESS
}

# xla_flags PLATFORM: the flags of a file, comments stripped, on one line. `--xla-flags` may name
# another file, or `none`.
xla_flags() {
  local file=${MASSACT_XLA_FLAGS_FILE:-$LAUNCH_DIR/xla_flags/$1.txt} line words flags=()
  [[ $file == none ]] && return
  [[ -r $file ]] || die "there is no file of XLA flags $file; expected: a file, or none"
  while read -r line || [[ -n $line ]]; do
    read -ra words <<<"${line%%#*}"
    flags+=("${words[@]}")
  done <"$file"
  join "${flags[@]}"
}

# join TEXT...: those that are not empty, a space between.
join() {
  local text joined=
  for text; do
    [[ -z $text ]] || joined+=" $text"
  done
  printf '%s\n' "${joined# }"
}
