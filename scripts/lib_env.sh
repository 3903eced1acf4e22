# shellcheck shell=bash
# The Python environment of the scripts in this folder. Sourced, not run:  prepare_environment FOLDER EXTRAS
#
# What a caller may set:
#   PYTHON           interpreter to make the environment from (default: python3)
#   USE_VENV=0       install into that interpreter itself, without a virtual environment
#   TORCH_SPEC       what pip installs as torch, e.g. torch==2.9.1 (default: the newest with a GPU, else a CPU build)
#   NEMO_SPEC        another NeMo, e.g. 'nemo_toolkit[asr]==2.7.3' (default: what pyproject.toml allows)
#   SKIP_INSTALL=1   install nothing: the interpreter has all that is needed

REPOSITORY="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CPU_WHEELS=https://download.pytorch.org/whl/cpu
CPU_TORCH=torch==2.13.0 # the release the tests ran with; its build for CPUs is a tenth of the size of the one for GPUs

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

# For the tests, which start processes of their own. torch's threads wait actively for each other: one thread more than
# there are free cores makes torch several times slower, one less costs little.
use_half_of_the_cores() {
    local cores
    cores="$(getconf _NPROCESSORS_ONLN)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores > 1 ? cores / 2 : 1))}"
}

# An environment that is active is used as it is; conda's base counts as none.
environment_is_active() {
    [[ -n "${VIRTUAL_ENV:-}" ]] || [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-base}" != base ]]
}

# Sets torch_args, the arguments of pip that install torch.
# pip asks an index that does not answer again and again, for every package, so look first whether it is there.
choose_torch() {
    torch_args=("${TORCH_SPEC:-torch}")
    if ! has_gpu; then
        torch_args=("${TORCH_SPEC:-$CPU_TORCH}")
        if [[ "$(uname -s)" == Linux ]] && timeout 10 "$python" -c \
            'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$CPU_WHEELS/torch/" 2>/dev/null
        then
            # Beside the indexes that pip is configured with, not instead of them. X+cpu there is newer than X for pip.
            torch_args+=(--extra-index-url "$CPU_WHEELS")
        fi
    fi
}

# What the environment is made of, as one word: it is made again when this changes.
fingerprint() {
    { cat "$REPOSITORY/pyproject.toml" "$REPOSITORY/setup.py"
      printf '%s\n' "$REPOSITORY" "$1" "${TORCH_SPEC:-}" "${NEMO_SPEC:-}"
      "$python" --version; } | cksum | tr -d ' '
}

# run_command ARGUMENTS: nemo-lact of the environment, after prepare_environment. It needs no console script.
run_command() {
    "$python" -c 'from nemo_lact.cli import app; app(prog_name="nemo-lact")' "$@"
}

has_modules() {
    (cd / && "$python" -c 'import importlib.util as u, sys; sys.exit(any(u.find_spec(m) is None for m in sys.argv[1:]))' "$@")
}

# prepare_environment FOLDER EXTRAS: sets $python to an interpreter that has this project and its EXTRAS ('' or 'dev').
# The environment is made in FOLDER unless one is active. A second call finds it ready.
prepare_environment() {
    local folder="$1" extras="$2" stamp mark
    python="${PYTHON:-python3}"
    if environment_is_active; then
        python="${PYTHON:-python}"
    elif [[ "${USE_VENV:-1}" != 0 && "${SKIP_INSTALL:-0}" != 1 ]]; then
        command -v "$python" >/dev/null || die "no $python found; install Python 3.10 or newer, or set PYTHON"
        if [[ ! -x "$folder/bin/pip" ]]; then
            say "making $folder"
            "$python" -m venv "$folder" || die "could not make $folder; on Debian and Ubuntu: apt-get install python3-venv"
            # The pip that Python brings along can be years old and takes twice as long.
            "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
        fi
        python="$folder/bin/python"
    fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$("$python" --version 2>&1) found; needs Python 3.10 or newer, set PYTHON to one"
    if [[ "${SKIP_INSTALL:-0}" == 1 ]]; then
        export PYTHONPATH="$REPOSITORY${PYTHONPATH:+:$PYTHONPATH}"
        has_modules torch nemo || die "SKIP_INSTALL=1, but $python has no torch or no nemo"
        return
    fi

    stamp="$("$python" -c 'import sys; print(sys.prefix)')/.nemo_lact${extras:+-$extras}"
    mark="$(fingerprint "$extras")"
    if [[ -f "$stamp" && "$(<"$stamp")" == "$mark" ]] && has_modules torch nemo nemo_lact; then
        say "environment ready: $python"
        return
    fi
    # Modules are compiled when they are first imported: compiling all of them takes longer than the installation.
    local torch_args torch_found pip=("$python" -m pip install --quiet --disable-pip-version-check --no-compile)
    if [[ -n "${TORCH_SPEC:-}" ]] || ! has_modules torch; then
        choose_torch
        say "installing ${torch_args[*]} into $("$python" -c 'import sys; print(sys.prefix)')"
        "${pip[@]}" "${torch_args[@]}"
    fi
    # torch is named again with its exact version, so that pip keeps this build whatever NeMo's packages ask for.
    torch_found="torch==$("$python" -c 'from importlib.metadata import version; print(version("torch"))')"
    say "installing nemo_lact and NeMo, with $torch_found"
    "${pip[@]}" "$torch_found" ${NEMO_SPEC:+"$NEMO_SPEC"} -e "$REPOSITORY${extras:+[$extras]}"
    printf '%s' "$mark" >"$stamp"
}
