#!/usr/bin/env bash
# The second command: makes the environment of the tests and runs them. Arguments go to pytest:
#   scripts/run_tests.sh                      everything
#   scripts/run_tests.sh -m 'not slow'        the quick ones
#   scripts/run_tests.sh tests/ops -k muon
# The environment is .venv-tests, unless one is active; scripts/show_options.sh lists the variables that change it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_env.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
    exit
fi
prepare_environment "$REPOSITORY/.venv-tests" dev
use_half_of_the_cores
# Tests start dozens of processes that import NeMo. Its modules are compiled once, also where the shell forbids to keep
# what is compiled (as in containers): else each of the processes does it again, for 15 seconds.
unset PYTHONDONTWRITEBYTECODE
cd "$REPOSITORY"
exec "$python" -m pytest -n 2 --dist loadfile "$@"  # two files at a time
