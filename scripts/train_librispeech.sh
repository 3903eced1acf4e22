#!/usr/bin/env bash
# From nothing to a trained model on LibriSpeech: download, manifests, tokenizer, long rows, training, report.
# Each step keeps what is done, so the same command again goes on where it stopped. `--help` lists the options.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_env.sh"

usage() {
    cat <<'END'
usage: scripts/train_librispeech.sh --data-dir FOLDER [options] [hydra.key=value ...]

  --data-dir FOLDER     where LibriSpeech is, or goes to
  --size SIZE           minimal (default; train-clean-100, dev-clean), standard (460 h) or full (960 h)
  --skip-download       use the tree that is there
  --download-only       get LibriSpeech and stop
  --config-name NAME    recipe, a file of examples/asr/conf/lact without .yaml (default: lact_ctc_bpe)
  --vocab-size N        pieces of the tokenizer (default: 1024)
  --long-seconds N      join the utterances of a chapter to rows of up to N seconds, and train on these and the short
                        ones in turn (default: 120; 0: short rows only)
  --output-dir FOLDER   model, report and logs (default: runs/librispeech-SIZE)
  --batch-size N        utterances per training batch, at most
  --init-from FILE      start from the weights of this .nemo file
  --seed N              of weights, augmentation and the order of rows (default: 0)
  -h, --help            this text

Any other argument with '=' goes to the config as a Hydra override, e.g. trainer.max_steps=20000.
END
}

size=minimal data_dir='' config=lact_ctc_bpe vocab=1024 long=120 seed=0 output_dir=''
download_options=() train_options=()
while (($#)); do
    option="$1"
    if [[ "$option" == --*=* ]]; then # --name=value is --name value
        set -- "${option%%=*}" "${option#*=}" "${@:2}"
        option="$1"
    fi
    case "$option" in
        --data-dir | --size | --config-name | --vocab-size | --long-seconds | --output-dir | --batch-size | --init-from | \
            --seed)
            (($# >= 2)) || die "$option needs a value; see --help"
            value="$2"
            shift
            ;;&
        --vocab-size | --batch-size)
            [[ "$value" =~ ^[1-9][0-9]*$ ]] || die "$option $value: needs a whole number above 0"
            ;;&
        --data-dir) data_dir="$value" ;;
        --size) size="$value" ;;
        --config-name) config="${value%.yaml}" ;;
        --vocab-size) vocab="$value" ;;
        --long-seconds)
            [[ "$value" =~ ^[0-9]+$ ]] || die "$option $value: needs a whole number, 0 for none"
            long="$value"
            ;;
        --seed)
            [[ "$value" =~ ^[0-9]+$ ]] || die "$option $value: needs a whole number"
            seed="$value"
            ;;
        --output-dir) output_dir="$value" ;;
        --batch-size | --init-from) train_options+=("$option" "$value") ;;
        --skip-download | --download-only) download_options+=("$option") ;;
        -h | --help) usage && exit ;;
        -*) usage >&2 && die "unknown option $option" ;;
        *=* | '~'*) train_options+=("$option") ;;
        *) usage >&2 && die "unknown argument '$option'; overrides have the form key=value" ;;
    esac
    shift
done
# The schedule needs the number of steps beforehand.
case "$size" in
    minimal) steps=50000 ;;
    standard) steps=100000 ;;
    full) steps=200000 ;;
    *) die "--size $size: must be minimal, standard or full" ;;
esac
[[ -n "$data_dir" ]] || die "--data-dir FOLDER is missing: where LibriSpeech is, or goes to; see --help"
[[ -f "$REPOSITORY/examples/asr/conf/lact/$config.yaml" ]] ||
    die "--config-name $config: no such recipe; there are: $(cd "$REPOSITORY/examples/asr/conf/lact" && echo *.yaml)"
output_dir="${output_dir:-$REPOSITORY/runs/librispeech-$size}"
manifests="$data_dir/manifests-$size"

say "[1/4] environment"
prepare_environment "$REPOSITORY/.venv" ''

say "[2/4] LibriSpeech, $size"
run_command data librispeech --data-dir "$data_dir" --size "$size" --output "$manifests" "${download_options[@]}"
[[ " ${download_options[*]} " == *' --download-only '* ]] && exit

say "[3/4] tokenizer and long rows"
# quote TEXT: for Hydra's grammar, whatever is in the path
quote() { printf "'%s'" "${1//\'/\\\'}"; }
overrides=("trainer.max_steps=$steps" "++seed=$seed")
if grep -q '^  tokenizer:' "$REPOSITORY/examples/asr/conf/lact/$config.yaml"; then
    tokenizer="$(run_command data tokenizer "$manifests/train.json" --output "$manifests" --vocab-size "$vocab")"
    overrides+=("model.tokenizer.dir=$(quote "$tokenizer")")
fi
if ((long > 0)); then
    run_command data longform "$manifests/train.json" --by speaker,chapter --seconds "$long" \
        --output "$manifests/train_long_$long.jsonl.gz"
    short_rows="{type: nemo, manifest_filepath: $(quote "$manifests/train.json"), weight: 0.5}"
    long_rows="{type: lhotse, cuts_path: $(quote "$manifests/train_long_$long.jsonl.gz"), weight: 0.5}"
    overrides+=(
        model.train_ds.use_lhotse=true
        model.train_ds.manifest_filepath=null
        "model.train_ds.input_cfg=[$short_rows,$long_rows]"
        "model.train_ds.max_duration=$((long > 40 ? long : 40))"
        model.train_ds.use_bucketing=true
        "model.train_ds.batch_duration=$((long > 300 ? long : 300))"
    )
fi

say "[4/4] training, transcription and report"
"$python" "$REPOSITORY/scripts/train_sample.py" --data-dir "$manifests" --config-name "$config" \
    --output-dir "$output_dir" "${overrides[@]}" "${train_options[@]}"
say "done after $((SECONDS / 60)) min $((SECONDS % 60)) s"
