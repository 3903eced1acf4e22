#!/usr/bin/env bash
# Downloads LibriSpeech (openslr.org/12) and writes its manifests. A broken download goes on when called again.
#   scripts/download_librispeech.sh --data-dir FOLDER [--size minimal|standard|full] [--subset NAME ...]
#   scripts/download_librispeech.sh --help      all options, those of: nemo-lact data librispeech
# The environment is .venv, unless one is active; scripts/show_options.sh lists the variables that change it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_env.sh"

prepare_environment "$REPOSITORY/.venv" ''
run_command data librispeech "$@"
