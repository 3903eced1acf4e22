#!/usr/bin/env bash
# The one command: makes the environment, fine-tunes a small model on the speech that comes with this repository,
# transcribes speech it has not heard, and writes a report. `--help` lists the options.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib_env.sh"

usage() {
    cat <<'END'
usage: scripts/setup_and_train.sh [options] [hydra.key=value ...]

  --dataset-size SIZE   sample (default; comes with this repository), minimal, standard or full (LibriSpeech)
  --data-dir FOLDER     your speech instead: a folder with train.json, dev.json and test.json (NeMo manifests);
                        for LibriSpeech where it is, or goes to (default: data/librispeech)
  --config-name NAME    recipe, a file of examples/asr/conf/lact without .yaml (default: lact_finetune_sample,
                        which starts from the starter model; from scratch: lact_ctc_char_sample; for LibriSpeech
                        lact_ctc_bpe)
  --batch-size N        utterances per training batch
  --epochs N            train N epochs, without the time limit of the recipe
  --init-from FILE      start from the weights of this .nemo file instead of the starter model
  --output-dir FOLDER   model, report and logs; the same folder again resumes its run (default: runs/sample,
                        for LibriSpeech runs/librispeech-SIZE)
  --download-only       get the speech and stop
  --skip-download       use the speech that is there, download nothing
  --no-venv             install into the current Python, not into .venv
  -h, --help            this text

Any other argument with '=' goes to the config as a Hydra override, e.g. model.optim.lr=1e-3.
scripts/show_options.sh lists the recipes, environment variables and common overrides.
END
}

size=sample data_dir='' config='' output_dir=''
download=yes download_only=no
train_options=()
while (($#)); do
    option="$1"
    # --name=value is --name value
    if [[ "$option" == --*=* ]]; then
        set -- "${option%%=*}" "${option#*=}" "${@:2}"
        option="$1"
    fi
    case "$option" in
        --dataset-size | --data-dir | --config-name | --batch-size | --epochs | --init-from | --output-dir)
            (($# >= 2)) || die "$option needs a value; see --help"
            value="$2"
            shift
            ;;&
        --dataset-size) size="$value" ;;
        --data-dir) data_dir="$value" ;;
        --config-name) config="${value%.yaml}" ;;
        --output-dir) output_dir="$value" ;;
        --init-from)
            [[ -f "$value" || "$value" == starter ]] || die "--init-from $value: no such file"
            train_options+=(--init-from "$value")
            ;;
        --batch-size | --epochs)
            [[ "$value" =~ ^[1-9][0-9]*$ ]] || die "$option $value: needs a whole number above 0"
            train_options+=("$option" "$value")
            ;;
        --download-only) download_only=yes ;;
        --skip-download) download=no ;;
        --no-venv) export USE_VENV=0 ;;
        -h | --help) usage && exit ;;
        -*) usage >&2 && die "unknown option $option" ;;
        *=* | '~'*) train_options+=("$option") ;;
        *) usage >&2 && die "unknown argument '$option'; overrides have the form key=value" ;;
    esac
    shift
done

[[ "$download_only$download" != yesno ]] || die "--download-only and --skip-download exclude each other"
case "$size" in
    sample) ;;
    minimal | standard | full)
        options=(--size "$size" --data-dir "${data_dir:-$REPOSITORY/data/librispeech}" --config-name "${config:-lact_ctc_bpe}")
        [[ -z "$output_dir" ]] || options+=(--output-dir "$output_dir")
        [[ "$download" == yes ]] || options+=(--skip-download)
        [[ "$download_only" == no ]] || options+=(--download-only)
        exec "$REPOSITORY/scripts/train_librispeech.sh" "${options[@]}" "${train_options[@]}"
        ;;
    *) die "--dataset-size $size: must be sample, minimal, standard or full" ;;
esac
data_dir_given="$data_dir"
data_dir="${data_dir:-$REPOSITORY/data/asterisk_en}"
config="${config:-lact_finetune_sample}"
output_dir="${output_dir:-$REPOSITORY/runs/sample}"
[[ -f "$REPOSITORY/examples/asr/conf/lact/$config.yaml" ]] ||
    die "--config-name $config: no such recipe; there are: $(cd "$REPOSITORY/examples/asr/conf/lact" && echo *.yaml)"

say "[1/3] speech: $data_dir"
for split in train dev test; do
    [[ -f "$data_dir/$split.json" ]] || die "no $data_dir/$split.json; the folder needs train.json, dev.json and test.json"
done
if [[ "$download_only" == yes ]]; then
    [[ -n "$data_dir_given" ]] || say "the sample speech comes with the repository; nothing to download"
    exit
fi

say "[2/3] environment"
prepare_environment "$REPOSITORY/.venv" ''

say "[3/3] training, transcription and report"
# torch's threads wait actively for each other. Where another program runs, that makes training several times slower;
# waiting asleep costs a tenth.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
"$python" "$REPOSITORY/scripts/train_sample.py" --data-dir "$data_dir" --config-name "$config" \
    --output-dir "$output_dir" "${train_options[@]}"
say "done after $((SECONDS / 60)) min $((SECONDS % 60)) s"
