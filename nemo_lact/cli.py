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


LONG_SECONDS = 120  # recordings beyond it are transcribed block by block
LEAVE_ONE_OUT = 3  # rows of a session


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
_MODEL_OR_STARTER = typer.Option(
    '--model', '-m', exists=True, dir_okay=False, help='The model, a .nemo file.', show_default='the starter model'
)
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
Session = Annotated[
    Path | None,
    typer.Option(
        '--session',
        callback=_writable,
        help='File with the memory of a voice: loaded if it is there, heard in order, saved afterwards.',
        show_default=False,
    ),
]
Learn = Annotated[bool, typer.Option('--learn/--no-learn', help='Let the memory learn from what it hears.')]
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
    model: Annotated[Path | None, _MODEL_OR_STARTER] = None,
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
    session: Session = None,
    learn: Learn = True,
    subtitles: Annotated[
        Path | None, typer.Option('--subtitles', callback=_writable, help='Write subtitles, a .srt or .vtt file.')
    ] = None,
    resume: Annotated[bool, typer.Option('--resume', help='Go on where this command was cut; with --output.')] = False,
    verbose: Verbose = False,
) -> None:
    """Write what is said: plain text to stdout (with the file's name if there are several), or JSON lines.

    Recordings of any length: with a LaCT model those over two minutes, and all with --session, --no-learn,
    --subtitles or --resume, are read, encoded and decoded block by block in flat memory.
    """
    if resume and (output is None or str(output) == '-'):
        raise typer.BadParameter('--resume needs --output FILE')
    by_blocks = session is not None or not learn or subtitles is not None or resume
    if by_blocks and language_model is not None:
        raise typer.BadParameter('--lm goes without --session, --no-learn, --subtitles and --resume')
    if timestamps and output is None:
        raise typer.BadParameter('--timestamps needs --output FILE (or --output - for stdout)')
    if timestamps and language_model is not None:
        raise typer.BadParameter("--timestamps and --lm exclude each other: NeMo's beam search gives no times")
    with _guarded(verbose):
        from nemo_lact import starter, transcription

        rows = transcription.collect(inputs, channel)
        if model is None:
            model = starter.resolve(starter.NAME)
            typer.echo(starter.NOTICE, err=True)
        search = language_model and (language_model, lm_weight, beam_size, lm_bonus)
        if subtitles is not None:
            from nemo_lact.inference.files import check_subtitle_file

            check_subtitle_file(subtitles)
        part = None if output is None or str(output) == '-' else output.with_name(f'{output.name}.part')
        if part is not None and not resume:
            part.unlink(missing_ok=True)
        blocks = {'session': session, 'learn': learn, 'part': part, 'wanted': by_blocks}
        with_times = timestamps or subtitles is not None
        rows = _transcribed(rows, model, batch_size, device, channel, workers, with_times, search, blocks)
        if subtitles is not None:
            from nemo_lact.inference.files import write_subtitles

            for file in write_subtitles(rows, subtitles):
                typer.echo(f'wrote {file}', err=True)
        if output is None:
            for row in rows:
                typer.echo(row['pred_text'] if len(rows) == 1 else f'{row["audio_filepath"]}\t{row["pred_text"]}')
        else:
            _write(rows, output)
            if part is not None:
                part.unlink(missing_ok=True)


@app.command()
def stream(
    source: Annotated[str, typer.Argument(help='An audio file, - for raw PCM from stdin, or "microphone".')],
    model: Annotated[Path, _MODEL],
    latency: Annotated[
        int | None, typer.Option(min=0, help='Look-ahead in encoder frames, one the model was made for.')
    ] = None,
    pace: Annotated[float, typer.Option(min=0, help='Speed of a file: 1 real time, 0 as fast as possible.')] = 1.0,
    rate: Annotated[int, typer.Option(min=1000, help='Samples a second of stdin (16 bit, one channel).')] = 16000,
    device: Where = Device.auto,
    channel: Channel = None,
    session: Session = None,
    learn: Learn = True,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Words as they are spoken, with a streaming model; the unfinished text is shown on a terminal.

    At the end latency and real-time factor go to stderr. Ctrl-C ends a stream properly.
    """
    with _guarded(verbose):
        from nemo_lact import transcription

        if source not in ('-', 'microphone'):
            transcription.collect([source], channel)
        with contextlib.redirect_stdout(sys.stderr):
            loaded = transcription.load_model(model, device.value)
        from nemo_lact.inference import live
        from nemo_lact.inference.stream import Streamer

        stream = Streamer(loaded, live.window_of(loaded, latency), live.memory_from(session, loaded), learn)
        if source == '-':
            samples, heard_rate = live.stdin_samples(rate), rate
        elif source == 'microphone':
            samples, heard_rate = live.microphone_samples(stream.rate), stream.rate
        else:
            samples, heard_rate = live.file_samples(source, stream.rate, channel, pace), stream.rate
        show = live.Display(quiet=as_json, partial=sys.stdout.isatty())
        report = live.run(stream, samples, heard_rate, show)
        if session is not None:
            stream.memory.save(session)
        if as_json:
            typer.echo(json.dumps(report))
        else:
            typer.echo(
                f'{report["seconds"]:.1f} s heard; latency {report["latency_seconds"]:.2f} s by design and up to '
                f'{report["step_seconds"]["largest"]:.3f} s of computing a step; '
                f'real-time factor {report["real_time_factor"]}',
                err=True,
            )


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
    session_key: Annotated[
        str | None,
        typer.Option(help='Rows with the same value of this key (speaker, session_id) share a memory.'),
    ] = None,
    learn: Learn = True,
    adaptation: Annotated[
        bool, typer.Option('--adaptation', help="Measure what the memory's learning does: docs/adaptation.md.")
    ] = False,
    clean_manifest: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help='Short clean rows, also measured with --adaptation.'),
    ] = None,
    leave_one_out: Annotated[
        int, typer.Option(min=0, help='Rows of each session scored after learning from its others; --adaptation.')
    ] = LEAVE_ONE_OUT,
    half: Annotated[bool, typer.Option('--half', help='bf16 autocast, with --adaptation.')] = False,
    verbose: Verbose = False,
) -> None:
    """Word and character error rate of a model, or of the pred_text in a manifest.

    With --adaptation: its memory learning against frozen, carried or fresh, by position, with the memory of other
    speakers, and the cost; --output takes the JSON, and a PNG of the same name is drawn beside it.
    """
    if adaptation:
        if model is None or language_model is not None or not learn:
            raise typer.BadParameter('--adaptation needs --model, and goes without --lm and --no-learn')
        if output is not None and output.suffix == '.png':
            raise typer.BadParameter(f'{output}: --output takes the JSON; the picture is drawn beside it as .png')
        with _guarded(verbose):
            _adaptation(
                manifest, model, output, as_json, device, verbose,
                session_key=session_key, clean=clean_manifest, leave_one_out=leave_one_out, batch_size=batch_size,
                channel=channel, half=half,
            )  # fmt: skip
        return
    if clean_manifest is not None or half or leave_one_out != LEAVE_ONE_OUT:
        raise typer.BadParameter('--clean-manifest, --leave-one-out and --half need --adaptation')
    if (session_key is not None or not learn) and (model is None or language_model is not None):
        raise typer.BadParameter('--session-key and --no-learn need --model and no --lm')
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
            blocks = {'session_key': session_key, 'learn': learn, 'wanted': session_key is not None or not learn}
            rows = _transcribed(rows, model, batch_size, device, channel, workers, search=search, blocks=blocks)
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


def _transcribed(
    rows, model_file, batch_size, device, channel, workers, timestamps=False, search=None, blocks=None
) -> list[dict]:
    """Block by block if `blocks['wanted']` or a recording is long and the model can, else with NeMo's transcribe."""
    from nemo_lact import transcription

    blocks = dict(blocks or {'wanted': False})
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result, whatever libraries print
        model = transcription.load_model(model_file, device.value)
        if search:
            from nemo_lact.decoding import use_language_model

            use_language_model(model, *search)
        progress = sys.stderr.isatty()
        long = not search and max(row['duration'] for row in rows) > LONG_SECONDS
        wanted = blocks.pop('wanted')
        if wanted or long:
            from nemo_lact.inference import files, live
            from nemo_lact.inference.longform import why_not_blocks

            session = blocks.pop('session', None)
            if wanted or why_not_blocks(model) is None:
                state = live.memory_from(session, model, fresh=True) if session is not None else None
                rows, state = files.transcribe_rows(
                    model, rows, batch_size, channel, timestamps, state, progress=progress, **blocks
                )
                if session is not None:
                    state.save(session)
                return rows
        return transcription.transcribe(model, rows, batch_size, timestamps, channel, workers, progress)


def _adaptation(manifest, model_file, output, as_json, device, verbose, clean, **options) -> None:
    from nemo_lact import adaptation, transcription
    from nemo_lact.adaptation import report

    channel = options['channel']
    rows = transcription.manifest_rows(manifest, channel)
    clean_rows = None if clean is None else transcription.manifest_rows(clean, channel)
    show_stage = verbose or sys.stderr.isatty()
    with contextlib.redirect_stdout(sys.stderr):
        model = transcription.load_model(model_file, device.value)
        say = (lambda stage: typer.echo(f'... {stage}', err=True)) if show_stage else (lambda stage: None)
        found = adaptation.measure(model, rows, clean_rows=clean_rows, say=say, **options)
    found = {'manifest': str(manifest), 'model': str(model_file), 'clean_manifest': clean and str(clean), **found}
    if as_json or str(output) == '-':
        typer.echo(json.dumps(found))
    else:
        report.show(found)
    if output is not None and str(output) != '-':
        picture = report.write(found, output)
        typer.echo(f'wrote {output} and {picture}', err=True)


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
