#!/usr/bin/env bash
# Scores a .nemo file on LibriSpeech's test sets: utterances, long rows and whole chapters, each clean and noisy.
#   scripts/evaluate_librispeech.sh --data-dir FOLDER --model FILE.nemo [--output-dir FOLDER] [--subsets NAME ...]
#   scripts/evaluate_librispeech.sh --help      all options, those of evaluate_librispeech.py
# What is done is kept, so the same command again goes on where it stopped.
# The environment is .venv, unless one is active; scripts/show_options.sh lists the variables that change it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_env.sh"

prepare_environment "$REPOSITORY/.venv" '' >&2
"$python" "$REPOSITORY/scripts/evaluate_librispeech.py" "$@"
