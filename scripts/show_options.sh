#!/usr/bin/env bash
# Lists all that can be chosen: options, environment variables, recipes and common Hydra overrides.
set -euo pipefail
scripts="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
configs="$scripts/../examples/asr/conf/lact"

"$scripts/setup_and_train.sh" --help
printf '\nLibriSpeech by itself\n\n'
printf '  scripts/%s_librispeech.sh --help\n' train download evaluate
printf '\nEnvironment variables of setup_and_train.sh and run_tests.sh\n\n'
sed -n '/^# What a caller may set:/,/^$/{/^#   /s/^#   /  /p}' "$scripts/lib_env.sh"
cat <<'END'
  OMP_NUM_THREADS  threads of torch on the CPU (default: torch's own; half of the cores in run_tests.sh)

Recipes (--config-name)

END
for file in "$configs"/*.yaml; do
    # The first comment line says what the recipe is.
    printf '  %-26s %s\n' "$(basename "$file" .yaml)" "$(sed -n '1s/^# *//p' "$file")"
done
cat <<'END'

Common Hydra overrides

  model.optim.lr=1e-3                       highest learning rate
  model.optim.sched.warmup_steps=100        steps until it is reached
  trainer.max_steps=1000                    stop after so many optimiser steps
  trainer.max_time=00:00:10:00              stop after this time (days:hours:minutes:seconds)
  trainer.precision=bf16-mixed              on GPUs
  trainer.devices=2 trainer.strategy=ddp    two GPUs
  model.encoder.n_layers=6                  any size of the encoder
  model.encoder.lact_chunk_size=256         encoder frames per update of the fast-weight memory
  model.encoder.adaptation=false            the same model with a memory that does not learn, for comparison
  model.train_ds.max_duration=20            leave longer utterances out (seconds)
END
