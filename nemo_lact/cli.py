"""The command `nemo-lact`. Thin: the work is in training.py, transcription.py, evaluation.py and info.py.

Exit codes: 0 done, 1 a problem (one message, a traceback only with --verbose), 2 wrong usage. Nothing heavy is
imported before a command runs, so `--help` is quick.
"""

import contextlib
import json
import logging
import os
import sys
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

import nemo_lact
from nemo_lact.data.cli import app as data_app
from nemo_lact.decoding import BEAM_SIZE, LM_ORDER, LM_WEIGHT, TOKEN_BONUS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help='Train and use NeMo CTC models whose encoder has a fast-weight memory (LaCT).',
)
app.add_typer(data_app, name='data')


class Device(str, Enum):
    auto = 'auto'
    cpu = 'cpu'
    cuda = 'cuda'


def _writable(path: Path | None) -> Path | None:
    """Refuse before the work what could not be written after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise typer.BadParameter(f'{path} cannot be written: it is a folder, or its folder does not exist')
    return path


_MODEL = typer.Option('--model', '-m', exists=True, dir_okay=False, help='The model, a .nemo file.', show_default=False)
Verbose = Annotated[bool, typer.Option('--verbose', '-v', help="Show NeMo's log, and the traceback of an error.")]
BatchSize = Annotated[int, typer.Option('--batch-size', '-b', min=1, help='Recordings at a time.')]
Where = Annotated[Device, typer.Option('--device', help='auto takes a CUDA GPU if there is one.')]
Output = Annotated[
    Path | None,
    typer.Option('--output', '-o', callback=_writable, help='File for JSON lines; - is stdout.', show_default=False),
]
Channel = Annotated[int | None, typer.Option('--channel', min=0, help='Channel to use of files with several.')]
Workers = Annotated[int, typer.Option('--workers', min=0, help='Processes that read audio.')]
LanguageModel = Annotated[
    Path | None,
    typer.Option('--lm', exists=True, dir_okay=False, help='N-gram model of `nemo-lact lm`: beam search with it.'),
]
LmWeight = Annotated[float, typer.Option('--lm-weight', min=0, help='Weight of the language model.')]
LmBonus = Annotated[float, typer.Option('--lm-bonus', help='Added for each token, against its liking for short texts.')]
BeamSize = Annotated[int, typer.Option('--beam-size', min=1, help='Texts kept at each frame, with --lm.')]
AsJson = Annotated[bool, typer.Option('--json', help='Print one JSON object and nothing else.')]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f'nemo-lact {nemo_lact.__version__} (nemo_toolkit {_of("nemo_toolkit")}, torch {_of("torch")})')
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option('--version', help='Show versions and exit.', callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(context_settings={'ignore_unknown_options': True})
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(help='Hydra overrides: key=value, +new=value, ~gone.', show_default=False)
    ] = None,
    config_name: Annotated[str, typer.Option(help='Config file, without .yaml.')] = 'lact_ctc_bpe',
    config_path: Annotated[Path | None, typer.Option(help='Folder of your own YAMLs.', show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Check, print the config, and stop.')] = False,
    verbose: Verbose = False,
) -> None:
    """Train as NeMo's speech_to_text_ctc(_bpe).py does, with the same overrides; no NeMo checkout needed.

    nemo-lact train --config-name lact_ctc_bpe model.train_ds.manifest_filepath=train.json
    model.validation_ds.manifest_filepath=dev.json model.tokenizer.dir=tokenizer trainer.max_steps=1000
    """
    overrides = overrides or []
    unknown = [word for word in overrides if word.startswith('-')]
    if unknown:
        raise typer.BadParameter(f'{unknown[0]} is no option; overrides have no dashes: key=value, +new=value, ~gone')
    with _guarded(verbose, level=logging.WARNING):
        from omegaconf import OmegaConf

        from nemo_lact import training

        try:
            cfg = training.check(training.compose(config_name, overrides, config_path), overrides)
        except training.ConfigError as error:
            if verbose:
                raise
            _fail(error, code=2)
        if dry_run:
            typer.echo(OmegaConf.to_yaml(cfg))
            return
        with contextlib.redirect_stdout(sys.stderr):
            written = training.train(cfg)
        for path in written:
            typer.echo(f'saved {path}')


@app.command()
def transcribe(
    inputs: Annotated[list[str], typer.Argument(help='Audio files, folders, manifests (.json, .jsonl).')],
    model: Annotated[Path, _MODEL],
    output: Output = None,
    timestamps: Annotated[bool, typer.Option('--timestamps', help='Times of words; needs --output.')] = False,
    batch_size: BatchSize = 4,
    device: Where = Device.auto,
    channel: Channel = None,
    workers: Workers = 0,
    language_model: LanguageModel = None,
    lm_weight: LmWeight = LM_WEIGHT,
    lm_bonus: LmBonus = TOKEN_BONUS,
    beam_size: BeamSize = BEAM_SIZE,
    verbose: Verbose = False,
) -> None:
    """Write what is said: plain text to stdout (with the file's name if there are several), or JSON lines."""
    if timestamps and output is None:
        raise typer.BadParameter('--timestamps needs --output FILE (or --output - for stdout)')
    if timestamps and language_model is not None:
        raise typer.BadParameter("--timestamps and --lm exclude each other: NeMo's beam search gives no times")
    with _guarded(verbose):
        from nemo_lact import transcription

        rows = transcription.collect(inputs, channel)
        search = language_model and (language_model, lm_weight, beam_size, lm_bonus)
        rows = _transcribed(rows, model, batch_size, device, channel, workers, timestamps, search)
        if output is None:
            for row in rows:
                typer.echo(row['pred_text'] if len(rows) == 1 else f'{row["audio_filepath"]}\t{row["pred_text"]}')
        else:
            _write(rows, output)


@app.command()
def evaluate(
    manifest: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="With 'text'; with 'pred_text' it needs no model."),
    ],
    model: Annotated[Path | None, _MODEL] = None,
    output: Output = None,
    as_json: AsJson = False,
    batch_size: BatchSize = 4,
    device: Where = Device.auto,
    channel: Channel = None,
    workers: Workers = 0,
    language_model: LanguageModel = None,
    lm_weight: LmWeight = LM_WEIGHT,
    lm_bonus: LmBonus = TOKEN_BONUS,
    beam_size: BeamSize = BEAM_SIZE,
    verbose: Verbose = False,
) -> None:
    """Word and character error rate of a model, or of the pred_text in a manifest."""
    if as_json and str(output) == '-':
        raise typer.BadParameter('--json and --output - would both write to stdout; give --output a file')
    if language_model is not None and model is None:
        raise typer.BadParameter('--lm needs --model: it takes part in the transcription')
    with _guarded(verbose):
        from nemo_lact import evaluation, transcription

        if model is None:
            rows = transcription.read_manifest(manifest)
        else:
            rows = transcription.manifest_rows(manifest, channel)
            search = language_model and (language_model, lm_weight, beam_size, lm_bonus)
            rows = _transcribed(rows, model, batch_size, device, channel, workers, search=search)
        summary, scored = evaluation.score(rows)
        if output is not None:
            _write(scored, output)
        if as_json:
            typer.echo(json.dumps(summary))
        elif str(output) != '-':
            typer.echo(manifest)
            _print_scores(summary)
        if summary['rows_without_text']:
            typer.echo(f'note: {summary["rows_without_text"]} rows have no text and are not in the rates', err=True)


@app.command()
def lm(
    inputs: Annotated[list[Path], typer.Argument(help='Texts: manifests (.json, .jsonl), or .txt with a text a line.')],
    model: Annotated[Path, _MODEL],
    output: Annotated[Path, typer.Option('--output', '-o', callback=_writable, help='File to write, .arpa.')],
    order: Annotated[int, typer.Option(min=2, help='Longest n-grams, in tokens of the model.')] = LM_ORDER,
    verbose: Verbose = False,
) -> None:
    """Estimate an n-gram language model over the tokens of a model, for `transcribe --lm` and NeMo's beam search."""
    with _guarded(verbose):
        from nemo_lact import decoding, transcription

        texts = decoding.texts_of(inputs)
        with contextlib.redirect_stdout(sys.stderr):
            made = decoding.make_language_model(transcription.load_model(model, 'cpu'), texts, output, order)
        if made['left_out']:
            typer.echo(f'note: {made["left_out"]} texts have characters that the model lacks; left out', err=True)
        typer.echo(f'{output}: {made["ngrams"]:,} n-grams of up to {order} from {made["tokens"]:,} tokens')


@app.command()
def info(
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help='A .nemo file.')],
    gpu_memory: Annotated[float | None, typer.Option(min=0.1, help='GiB of a GPU: estimate what it holds.')] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Sizes of a model, its chunk and window in seconds, the memory of a stream, and room on a GPU."""
    with _guarded(verbose):
        from nemo_lact import info as info_

        with contextlib.redirect_stdout(sys.stderr):
            found = info_.describe(model)
            if gpu_memory is not None:
                found['room'] = info_.room(found, gpu_memory)
        if as_json:
            typer.echo(json.dumps(found))
        else:
            info_.show(found)


def _transcribed(rows, model_file, batch_size, device, channel, workers, timestamps=False, search=None) -> list[dict]:
    from nemo_lact import transcription

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result, whatever libraries print
        model = transcription.load_model(model_file, device.value)
        if search:
            from nemo_lact.decoding import use_language_model

            use_language_model(model, *search)
        progress = sys.stderr.isatty()
        return transcription.transcribe(model, rows, batch_size, timestamps, channel, workers, progress)


def _write(rows: list[dict], output: Path) -> None:
    from nemo_lact.transcription import write_json_lines

    write_json_lines(rows, output)
    if str(output) != '-':
        typer.echo(f'wrote {len(rows)} rows to {output}', err=True)


def _print_scores(summary: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(rate):
        return 'no reference' if rate is None else f'{100 * rate:.2f} %'

    table = Table(show_header=False)
    table.add_row('word error rate', percent(summary['wer']))
    table.add_row('character error rate', percent(summary['cer']))
    table.add_section()
    for key in ('words', 'substitutions', 'insertions', 'deletions'):
        table.add_row(key, f'{summary[key]:,}')
    table.add_section()
    for key in ('rows', 'rows_scored', 'rows_with_errors', 'rows_with_empty_text', 'rows_without_text'):
        table.add_row(key.replace('_', ' '), f'{summary[key]:,}')
    Console().print(table)


@contextlib.contextmanager
def _guarded(verbose: bool, level: int = logging.ERROR):
    """A problem becomes one message, and NeMo's log is cut below `level`. With --verbose both are whole."""
    os.environ.setdefault('NEMO_REDIRECT_LOGS_TO_STDERR', '1')

    def loud(record: logging.LogRecord) -> bool:
        return verbose or record.levelno >= level

    nemo_logger = logging.getLogger('nemo_logger')  # a filter set here outlives the levels that NeMo sets later
    nemo_logger.addFilter(loud)
    if not verbose:
        logging.getLogger('nv_one_logger').setLevel(logging.ERROR)
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if verbose:
            raise
        _fail(error, code=1)
    finally:
        nemo_logger.removeFilter(loud)


def _fail(error: Exception, code: int) -> None:
    kind = '' if isinstance(error, (ValueError, OSError, RuntimeError)) else f'{type(error).__name__}: '
    typer.echo(f'error: {kind}{error}', err=True)
    raise typer.Exit(code)


def _of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return 'not installed'
