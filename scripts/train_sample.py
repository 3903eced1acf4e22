#!/usr/bin/env python3
"""Train a model on a folder of manifests, transcribe its held-out speech and write a report.

    python scripts/train_sample.py [options] [hydra.key=value ...]

The recipe is a config (model, optimiser, schedule, time limit); the options and overrides change it. Training goes
through NeMo exactly as its speech_to_text_ctc.py does. A run that was interrupted goes on from its last checkpoint
when it is started again with the same --output-dir; one that had ended is only evaluated again.

Writes into --output-dir: model.nemo (the last weights or those of the best validation, blended with the first ones if
the recipe says so), lm.arpa (if the recipe has a language model), test_transcripts.json, report.md, report.png,
training/ (NeMo's logs and checkpoints), and speech/ (if the recipe makes rows of its own).
"""

import argparse
import platform
import shutil
import sys
import time
from pathlib import Path

from nemo_lact import starter

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_CONFIG = 'lact_finetune_sample'
SHOWN_SECONDS = 3.5  # the report's picture takes the held-out utterance whose length is closest to this


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config-name', default=DEFAULT_CONFIG, help='config to use (default: %(default)s)')
    parser.add_argument('--config-path', help='folder of the configs (default: those of nemo_lact)')
    parser.add_argument(
        '--data-dir',
        type=Path,
        default=REPOSITORY / 'data' / 'asterisk_en',
        help='folder with train.json, dev.json and test.json, NeMo manifests (default: the bundled speech)',
    )
    parser.add_argument('--output-dir', type=Path, default=Path('runs/sample'), help='default: %(default)s')
    parser.add_argument('--batch-size', type=int, help='utterances per training batch')
    parser.add_argument('--epochs', type=int, help='train this many epochs, without the time limit of the config')
    parser.add_argument(
        '--init-from',
        metavar='FILE.nemo',
        help="start from the weights of this model; 'starter' is the one that comes with nemo_lact "
        '(default: starter if the config is for fine-tuning, else none)',
    )
    parser.add_argument('--verbose', action='store_true', help="show NeMo's log")
    parser.add_argument('overrides', nargs='*', metavar='key=value', help='Hydra overrides of the config')
    return parser.parse_args()


def hydra_overrides(args: argparse.Namespace, spliced: bool = False) -> list[str]:
    """The options as Hydra overrides, before those of the user, which so have the last word."""
    quoted = {
        'model.train_ds.manifest_filepath': (spliced_folder(args) if spliced else args.data_dir) / 'train.json',
        'model.validation_ds.manifest_filepath': args.data_dir / 'dev.json',
        '++exp_manager.explicit_log_dir': args.output_dir / 'training',
    }
    if init_from := args.init_from or (starter.NAME if 'finetune' in args.config_name else None):
        quoted['++init_from_nemo_model'] = starter.resolve(init_from)
    overrides = [f'{key}={quote(path.resolve())}' for key, path in quoted.items()]
    overrides += [
        '++exp_manager.resume_if_exists=true',
        '++exp_manager.resume_ignore_no_checkpoint=true',  # the first time there is nothing to resume
        '++exp_manager.resume_past_end=true',
        '++trainer.enable_progress_bar=false',
    ]
    if spliced:
        overrides.append('model.train_ds.augmentor=null')  # the rows have their speeds
    if args.batch_size:
        overrides.append(f'model.train_ds.batch_size={args.batch_size}')
    if args.epochs:
        overrides += [f'trainer.max_epochs={args.epochs}', '++trainer.max_steps=-1', '++trainer.max_time=null']
    return overrides + args.overrides


def spliced_folder(args: argparse.Namespace) -> Path:
    return args.output_dir / 'speech'


def splice(args: argparse.Namespace) -> bool:
    """Write the rows that the recipe asks for, and say whether it does."""
    from splice_speech import write

    from nemo_lact.training import compose

    if not (args.data_dir / 'word_ends.json').is_file():
        return False
    wanted = compose(args.config_name, hydra_overrides(args), args.config_path).get('splice')
    if not wanted or not wanted.rows:
        return False
    write(args.data_dir / 'train.json', spliced_folder(args), wanted.rows, wanted.share)
    return True


def quote(value) -> str:
    """A path for Hydra's override grammar: with blanks, commas, '=' or quotes in it."""
    return "'" + str(value).replace("'", "\\'") + "'"


def texts_to_count(search, data_dir: Path) -> list[str]:
    """Of the recipe's language model: the training texts, as often as it says, and those of `more_texts`."""
    from nemo_lact.decoding import texts_of

    more = search.get('more_texts') or []
    more = [REPOSITORY / path for path in ([more] if isinstance(more, str) else more)]
    return texts_of([data_dir / 'train.json'] * search.get('train_repeats', 1) + more)


def evaluate(model_file: Path, args: argparse.Namespace, search):
    """Restore the saved model, as a user would, and score it on the held-out speech.

    Returns (model, rates greedy, rates with the language model or None, scored rows); with a language model every row
    has `pred_text_lm` too.
    """
    from nemo_lact import decoding
    from nemo_lact.evaluation import score
    from nemo_lact.transcription import collect, load_model, transcribe

    model = load_model(model_file)
    manifest = args.data_dir / 'test.json'
    greedy, rows = score(transcribe(model, collect([manifest]), batch_size=8, progress=False))
    if not search:
        return model, greedy, None, rows
    texts = texts_to_count(search, args.data_dir)
    decoding.make_language_model(model, texts, args.output_dir / 'lm.arpa', search.order)
    decoding.use_language_model(model, args.output_dir / 'lm.arpa', search.weight, search.beam_size, search.token_bonus)
    with_lm, found = score(transcribe(model, collect([manifest]), batch_size=8, progress=False))
    return model, greedy, with_lm, [{**row, 'pred_text_lm': f['pred_text']} for row, f in zip(rows, found)]


def mel_of(model, row):
    """The features [mel channels, frames] that the model sees of one row's audio, a NumPy array."""
    import librosa
    import torch

    samples, _ = librosa.load(row['audio_filepath'], sr=model.cfg.sample_rate)
    signal = torch.from_numpy(samples).unsqueeze(0).to(model.device)
    with torch.inference_mode():
        mel, frames = model.preprocessor(
            input_signal=signal, length=torch.tensor([signal.shape[1]], device=model.device)
        )
    return mel[0, :, : frames[0]].float().cpu().numpy()


def facts_of(model, config_name, summary, seconds) -> dict:
    import nemo
    import torch

    device = torch.cuda.get_device_name() if model.device.type == 'cuda' else f'CPU, threads: {torch.get_num_threads()}'
    return {
        'Model': f'{type(model.encoder).__name__}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters',
        'Config': config_name,
        'Held-out speech': f'{summary["rows_scored"]} utterances, {summary["seconds"] / 60:.1f} min',
        'Time of training, this call': f'{seconds / 60:.1f} min',
        'Device': device,
        'Software': f'NeMo {nemo.__version__}, torch {torch.__version__}, Python {platform.python_version()}',
    }


def main(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped option answer at once.
    from nemo_lact import blending
    from nemo_lact.progress import PrintProgress
    from nemo_lact.report import read_history, write_report
    from nemo_lact.schedule import EndWithTime
    from nemo_lact.training import check, compose, train
    from nemo_lact.transcription import check_nemo_file, collect, write_json_lines

    overrides = hydra_overrides(args, spliced=splice(args))
    if args.init_from:
        check_nemo_file(starter.resolve(args.init_from))
    collect([args.data_dir / 'test.json'])  # before minutes of training, not after
    cfg = check(compose(args.config_name, overrides, args.config_path), overrides)
    if cfg.get('blend') is not None:
        blending.checked(cfg.blend)
        if not cfg.get('init_from_nemo_model'):
            raise ValueError(f'blend={cfg.blend} needs a model to start from: give --init-from, or ~blend')
    if not args.verbose:
        from nemo.utils import logging

        logging.setLevel(logging.ERROR)

    started = time.monotonic()
    training = args.output_dir / 'training'
    try:
        written = train(cfg, callbacks=[PrintProgress(), EndWithTime()])
    except RuntimeError as error:
        if 'state_dict' not in str(error):
            raise
        raise RuntimeError(
            f'the config gives a model of other sizes than the one it should start from: a checkpoint in {training} '
            f'(give another --output-dir, or remove that folder) or --init-from\n{error}'
        ) from error
    seconds = time.monotonic() - started
    model_file = args.output_dir / 'model.nemo'
    if written and cfg.get('blend'):
        blending.blend(written[0], cfg.init_from_nemo_model, cfg.blend, model_file)
    elif written:
        shutil.copyfile(written[0], model_file)
    elif not model_file.exists():
        raise RuntimeError(f'training ended without a model in {training}; remove that folder to start afresh')

    model, summary, with_lm, rows = evaluate(model_file, args, cfg.get('language_model'))
    write_json_lines(rows, args.output_dir / 'test_transcripts.json')
    shown = min(rows, key=lambda row: abs(row['duration'] - SHOWN_SECONDS))
    page = write_report(
        args.output_dir,
        read_history(training),
        summary['wer'],
        summary['cer'],
        samples=[shown] + [row for row in rows if row is not shown],
        mel=mel_of(model, shown),
        facts=facts_of(model, args.config_name, summary, seconds),
        title=f'Training run: {cfg.get("name", args.config_name)}',
        with_lm=with_lm,
    )
    for row in [shown] + rows[:4]:
        print(f'said          {row["text"]}\ngreedy        {row["pred_text"]}')
        if with_lm:
            print(f'with LM       {row["pred_text_lm"]}')
        print()
    print(f'held-out speech, {summary["rows_scored"]} utterances:')
    print(f'  greedy                 WER {summary["wer"]:.1%}, CER {summary["cer"]:.1%}')
    if with_lm:
        print(f'  with a language model  WER {with_lm["wer"]:.1%}, CER {with_lm["cer"]:.1%}')
    print(f'model:  {model_file}\nreport: {page}')


if __name__ == '__main__':
    try:
        main(parse_arguments())
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        sys.exit(f'train_sample.py: {error}')
