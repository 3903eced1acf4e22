"""`nemo-lact data`: the tools of this folder as commands. Thin, and nothing heavy is imported before one runs."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help='Corpora to NeMo manifests, long rows, tokenizers, and checks.')

Output = Annotated[Path, typer.Option('--output', '-o', help='Where to write.', show_default=False)]
Jobs = Annotated[int | None, typer.Option('--jobs', min=1, help='Processes; all cores by default.', show_default=False)]
Manifests = Annotated[list[Path], typer.Argument(help='NeMo manifests, one JSON object a line.', show_default=False)]
Verbose = Annotated[bool, typer.Option('--verbose', '-v', help="Show NeMo's log, and the traceback of an error.")]
KeepCase = Annotated[bool, typer.Option('--keep-case', help='Leave capitals.')]
KeepChars = Annotated[str, typer.Option(help="Punctuation to keep, e.g. '.,?'.")]
RawText = Annotated[bool, typer.Option('--raw-text', help='Do not normalise the texts.')]


class Size(str, Enum):
    minimal = 'minimal'
    standard = 'standard'
    full = 'full'


def _guarded(verbose: bool):
    from nemo_lact.cli import _guarded

    return _guarded(verbose)


def _report(made: dict[str, str], folder: Path) -> None:
    for name, what in made.items():
        typer.echo(f'{folder / name}: {what}')


def _written(output: Path, rows: list[dict], rejects) -> None:
    from nemo_lact.data.manifests import said, seconds

    left = rejects.write(output)
    typer.echo(f'{output}: {said(len(rows), seconds(rows))}')
    if left:
        typer.echo(f'{left}: {len(rejects)} rows left out, with the reasons', err=True)


@app.command()
def librispeech(
    data_dir: Annotated[Path, typer.Option(help='Folder of (or for) the corpus.', show_default=False)],
    size: Annotated[Size, typer.Option(help='minimal 7 GB, standard 30 GB, full 61 GB of downloads.')] = Size.minimal,
    subset: Annotated[
        list[str] | None, typer.Option(help='Instead of --size; may be given several times.', show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option('--output', '-o', help='Folder for the manifests; by default DATA_DIR/manifests.')
    ] = None,
    skip_download: Annotated[bool, typer.Option('--skip-download', help='Use the tree that is there.')] = False,
    download_only: Annotated[bool, typer.Option('--download-only', help='Write no manifests.')] = False,
    mirror: Annotated[str | None, typer.Option(help='Another server than openslr.org.', show_default=False)] = None,
    keep_archives: Annotated[bool, typer.Option('--keep-archives', help='Keep the .tar.gz files.')] = False,
    parallel_downloads: Annotated[int, typer.Option(min=1, help='Downloads at a time.')] = 2,
    force: Annotated[bool, typer.Option('--force', help='Write manifests again that are there.')] = False,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Download LibriSpeech (resumed, verified) and write its manifests. Call it again to go on."""
    if skip_download and download_only:
        raise typer.BadParameter('--skip-download and --download-only exclude each other')
    with _guarded(verbose):
        from nemo_lact.data import librispeech as corpus

        subsets = tuple(dict.fromkeys(subset or corpus.SIZES[size.value]))
        if unknown := [name for name in subsets if name not in corpus.MD5]:
            raise ValueError(f'--subset {unknown[0]}: no such subset; there are {", ".join(sorted(corpus.MD5))}')
        if not skip_download:
            corpus.fetch(subsets, data_dir, mirror or corpus.MIRROR, parallel_downloads, keep_archives)
        if download_only:
            typer.echo(f'{data_dir / "LibriSpeech"}: {", ".join(subsets)}')
            return
        output = output or data_dir / 'manifests'
        _report(corpus.prepare(subsets, data_dir, output, jobs, force), output)


@app.command()
def commonvoice(
    folder: Annotated[Path, typer.Argument(help='The unpacked release, or its folder of one language.')],
    language: Annotated[str, typer.Option(help='Code of the language, as the folder is named.', show_default=False)],
    output: Output,
    split: Annotated[list[str], typer.Option(help='May be given several times.')] = ['train', 'dev', 'test'],  # noqa: B006
    convert: Annotated[
        str | None, typer.Option(help='flac or wav: convert the mp3 (mono, 16 kHz).', show_default=False)
    ] = None,
    keep_case: KeepCase = False,
    keep_chars: KeepChars = '',
    raw_text: RawText = False,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Manifests of a Common Voice release, with accents and client_id."""
    if convert not in (None, 'flac', 'wav'):
        raise typer.BadParameter(f'--convert {convert}: must be flac or wav')
    with _guarded(verbose):
        from nemo_lact.data import commonvoice as corpus
        from nemo_lact.data.text import Normaliser, show

        normalise = None if raw_text else Normaliser(not keep_case, keep_chars)
        made = corpus.prepare(folder, language, output, split, convert, normalise=normalise, jobs=jobs)
        _report(made, output)
        if normalise:
            show(normalise.report)


@app.command()
def generic(
    source: Annotated[Path, typer.Argument(help='CSV, TSV, JSON, JSONL, a Kaldi folder, or audio with .txt beside.')],
    output: Output,
    audio_column: Annotated[str | None, typer.Option(help='Column of the audio file.', show_default=False)] = None,
    text_column: Annotated[str | None, typer.Option(help='Column of the text.', show_default=False)] = None,
    keep_case: KeepCase = False,
    keep_chars: KeepChars = '',
    raw_text: RawText = False,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """A manifest of your own data; what cannot be used is listed beside it with the reasons."""
    with _guarded(verbose):
        from nemo_lact.data import generic as corpus
        from nemo_lact.data.manifests import write_manifest
        from nemo_lact.data.text import Normaliser, show

        normalise = None if raw_text else Normaliser(not keep_case, keep_chars)
        rows, rejects = corpus.rows_of(source, audio_column, text_column, normalise, jobs)
        write_manifest(output, rows)
        _written(output, rows, rejects)
        if normalise:
            show(normalise.report)


@app.command()
def synthetic(
    texts: Annotated[Path, typer.Argument(help='One sentence a line, or a NeMo manifest with texts.')],
    output: Output,
    speakers: Annotated[int, typer.Option(min=1, help='Voices x pitches x rates.')] = 40,
    sessions: Annotated[int, typer.Option(min=1, help='Per speaker: room, channel, noise, gain.')] = 2,
    utterances: Annotated[int, typer.Option(min=1, help='Per session.')] = 20,
    language: Annotated[str, typer.Option(help="As espeak-ng's -v takes it.")] = 'en-us',
    dev_speakers: Annotated[int, typer.Option(min=0, help='Speakers for dev.json.')] = 0,
    test_speakers: Annotated[int, typer.Option(min=0, help='Speakers for test.json.')] = 0,
    clean: Annotated[bool, typer.Option('--clean', help='No rooms, channels or noise.')] = False,
    seed: Annotated[int, typer.Option(help='Another one gives another corpus.')] = 0,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Machine speech of many voices in many rooms (espeak-ng); labelled as synthetic, for trying things."""
    with _guarded(verbose):
        from nemo_lact.data import synthetic as corpus

        options = dict(dev_speakers=dev_speakers, test_speakers=test_speakers, clean=clean, seed=seed, jobs=jobs)
        made = corpus.make(corpus.read_texts(texts), output, speakers, sessions, utterances, language, **options)
        _report(made, output)


@app.command()
def text(
    manifest: Annotated[Path, typer.Argument(help='NeMo manifest.', exists=True, dir_okay=False)],
    output: Annotated[Path | None, typer.Option('--output', '-o', help='Manifest with normalised texts.')] = None,
    keep_case: KeepCase = False,
    keep_chars: KeepChars = '',
    drop_digits: Annotated[bool, typer.Option('--drop-digits', help='Leave rows with digits out.')] = False,
    verbose: Verbose = False,
) -> None:
    """Show what each rule of text normalisation would change; with --output, write the result."""
    with _guarded(verbose):
        from nemo_lact.data.manifests import Rejects, write_manifest
        from nemo_lact.data.text import Normaliser, has_digits, show
        from nemo_lact.transcription import read_manifest

        normalise, rejects, rows = Normaliser(not keep_case, keep_chars), Rejects(), []
        for number, row in enumerate(read_manifest(manifest), 1):
            if not isinstance(row.get('text'), str):
                rejects.add('no text', row=number)
                continue
            done = normalise(row['text'])
            if not done or (drop_digits and has_digits(done)):
                rejects.add('digits' if done else 'nothing left of the text', row=number, text=row['text'])
            else:
                rows.append({**row, 'text': done})
        show(normalise.report)
        if rejects:
            typer.echo(f'{len(rejects)} rows have no text left, or digits that --drop-digits leaves out', err=True)
        if output:
            write_manifest(output, rows)
            left = rejects.write(output)
            typer.echo(f'{output}: {len(rows):,} rows' + (f'; the others, with reasons: {left}' if left else ''))


@app.command()
def tokenizer(
    manifests: Manifests,
    output: Output,
    vocab_size: Annotated[int, typer.Option(min=8, help='Pieces.')] = 1024,
    kind: Annotated[str, typer.Option('--type', help='bpe, unigram, char or word.')] = 'bpe',
    character_coverage: Annotated[float, typer.Option(min=0.9, max=1.0, help='0.9995 for large alphabets.')] = 1.0,
    force: Annotated[bool, typer.Option('--force', help='Train one again that is there.')] = False,
    verbose: Verbose = False,
) -> None:
    """A SentencePiece tokenizer in OUTPUT/tokenizer_spe_TYPE_vSIZE, the value of model.tokenizer.dir."""
    with _guarded(verbose):
        from nemo_lact.data.tokenizer import TYPES, train_tokenizer

        if kind not in TYPES:
            raise ValueError(f'--type {kind}: must be one of {", ".join(TYPES)}')
        folder = train_tokenizer(manifests, output, vocab_size, kind, character_coverage, force)
        pieces = len((folder / 'tokenizer.vocab').read_text(encoding='utf-8').splitlines())
        if pieces < vocab_size:
            typer.echo(f'note: the texts give only {pieces} of {vocab_size} pieces', err=True)
        typer.echo(folder)


@app.command()
def longform(
    source: Annotated[Path, typer.Argument(help='NeMo manifest, or Lhotse cuts (.jsonl.gz).', exists=True)],
    output: Annotated[Path, typer.Option('--output', '-o', help='NAME.jsonl.gz: Lhotse cuts; NAME.json: manifest.')],
    seconds: Annotated[list[float], typer.Option(help='Longest row; several take turns.')] = [120.0],  # noqa: B006
    by: Annotated[
        str | None, typer.Option(help='Keys that are equal in a row, e.g. speaker,chapter.', show_default=False)
    ] = None,
    gap: Annotated[float, typer.Option(min=0, help='Silence between files, seconds.')] = 0.3,
    max_pause: Annotated[float, typer.Option(min=0, help='A longer pause in a file starts a new row.')] = 2.0,
    write_audio: Annotated[
        Path | None, typer.Option(help='Folder for joined FLAC, for a NeMo manifest of several files.')
    ] = None,
    gain_db: Annotated[float, typer.Option(min=0, max=40, help='One random gain per row (cuts only).')] = 0.0,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Join consecutive utterances to long rows, on the fly where that is possible."""
    with _guarded(verbose):
        from nemo_lact.data import longform as long
        from nemo_lact.data.manifests import said
        from nemo_lact.data.pieces import read_pieces

        cuts = output.name.endswith(('.jsonl.gz', '.jsonl'))
        if gain_db and not cuts:
            raise ValueError('--gain-db is kept in Lhotse cuts; give --output NAME.jsonl.gz')
        pieces, rejects, keys = read_pieces(source, by.split(',') if by else None, jobs)
        rows = long.join(pieces, seconds, gap, max_pause)
        if cuts:
            long.write_cuts(rows, output, gain_db)
        else:
            long.write_nemo(rows, output, write_audio, jobs)
        total = sum(row.duration for row in rows)
        joined = sum(len(row.pieces) > 1 for row in rows)
        typer.echo(
            f'{output}: {said(len(rows), total)} from {len(pieces):,} utterances joined by {",".join(keys)}; '
            f'{joined:,} rows join several, the longest has {max(row.duration for row in rows):.1f} s'
        )
        if left := rejects.write(output):
            typer.echo(f'{left}: {len(rejects)} rows left out, with the reasons', err=True)


@app.command()
def noisy(
    manifest: Annotated[Path, typer.Argument(help='NeMo manifest.', exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option('--output', '-o', help='NAME.json; the audio goes to the folder NAME.')],
    by: Annotated[
        str | None, typer.Option(help='Keys that are equal in a session, e.g. speaker,chapter.', show_default=False)
    ] = None,
    snr: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar='LOW HIGH', help='Speech over noise, dB; by default 5 to 35 or none.', show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help='Another one gives other rooms and noise.')] = 0,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """A noisy copy of the audio: one room, channel, noise and gain per session. Call it again to go on."""
    with _guarded(verbose):
        from nemo_lact.data.noisy import add_noise

        rows, rejects, keys = add_noise(manifest, output, by.split(',') if by else None, snr, seed, jobs)
        sessions = len({tuple(str(row[key]) for key in keys) for row in rows})
        typer.echo(f'{sessions:,} sessions by {",".join(keys)}')
        _written(output, rows, rejects)


@app.command()
def conditions(
    output: Output,
    rooms: Annotated[int, typer.Option(min=1, help='Impulse responses.')] = 100,
    noises: Annotated[int, typer.Option(min=1, help='Recordings of noise.')] = 30,
    seconds: Annotated[float, typer.Option(min=1, help='Of each noise; as long as the longest rows.')] = 120.0,
    seed: Annotated[int, typer.Option(min=0, help='Another one gives others.')] = 0,
    verbose: Verbose = False,
) -> None:
    """Made-up rooms and noise for model.train_ds.rir_path and noise_path, one of each per row."""
    with _guarded(verbose):
        from nemo_lact.data import conditions as made_up

        typer.echo(made_up.write_rooms(output, rooms, seed=seed))
        typer.echo(made_up.write_noises(output, noises, seconds, seed=seed))


@app.command()
def check(
    manifests: Annotated[list[Path], typer.Argument(help='First those to keep whole: test, dev, then train.')],
    model: Annotated[Path | None, typer.Option('--model', '-m', help='.nemo file: its vocabulary and frames.')] = None,
    config_name: Annotated[str | None, typer.Option(help='Or a config, without .yaml.', show_default=False)] = None,
    config_path: Annotated[Path | None, typer.Option(help='Folder of your own YAMLs.', show_default=False)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help='Or a tokenizer folder, or its .model.')] = None,
    labels: Annotated[str | None, typer.Option(help='Or the characters, as one word.', show_default=False)] = None,
    subsampling_factor: Annotated[int | None, typer.Option(min=1, help='Feature frames per encoder frame.')] = None,
    min_duration: Annotated[float | None, typer.Option(help='As in train_ds, seconds.', show_default=False)] = None,
    max_duration: Annotated[float | None, typer.Option(help='As in train_ds, seconds.', show_default=False)] = None,
    sample_rate: Annotated[int, typer.Option(min=1, help='What the model expects.')] = 16000,
    no_audio: Annotated[bool, typer.Option('--no-audio', help='Do not read audio headers: quick.')] = False,
    fix: Annotated[bool, typer.Option('--fix', help='Write NAME.clean.json and NAME.removed.jsonl.')] = False,
    strict: Annotated[bool, typer.Option('--strict', help='Exit 1 if a row has a problem.')] = False,
    jobs: Jobs = None,
    verbose: Verbose = False,
) -> None:
    """Find what would stop or spoil training: one table, with line numbers."""
    with _guarded(verbose):
        from nemo_lact.data import check as checks
        from nemo_lact.data import problems, vocabulary

        spelling = vocabulary.of_options(model, config_name, config_path, tokenizer, labels, subsampling_factor)
        reports = checks.check_manifests(
            manifests, spelling, min_duration, max_duration, not no_audio, sample_rate, jobs=jobs
        )
        problems.show(reports)
        for report in reports if fix else ():
            clean, removed, kept = checks.fix(report)
            typer.echo(f'{clean}: {kept:,} rows; what went and why: {removed}')
        useless = [report.path for report in reports if not report.usable]
        if useless:
            raise ValueError(f'no usable row in {", ".join(useless)}')
        if strict and not all(report.clean for report in reports):
            raise typer.Exit(1)
