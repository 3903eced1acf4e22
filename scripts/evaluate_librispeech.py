#!/usr/bin/env python3
"""Score a .nemo file, LaCT or another, on LibriSpeech's test sets: one Markdown table and one JSON.

    python scripts/evaluate_librispeech.py --data-dir FOLDER --model FILE.nemo [options]

Tests of each subset, all with the same words: its utterances; rows of up to so many seconds joined from consecutive
utterances of a chapter; whole chapters; and all of these with one room, channel and noise per chapter (5 to 20 dB).
All of it is `nemo-lact data` and `nemo-lact evaluate`, greedy, with the same options for any model. If the model has a
memory, `nemo-lact evaluate --adaptation` measures what it is worth over the utterances of each chapter.

Manifests and audio go to DATA_DIR/manifests-evaluation, once for all models. --output-dir gets results.json,
results.md, a file of transcripts for each test, and the JSON and pictures of --adaptation. What is done is kept: the
same command again goes on where it stopped; a changed model or manifest is scored again.
"""

import argparse
import contextlib
import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

SUBSETS = ('test-clean', 'test-other')
SECONDS = (120, 600)  # longest rows
WHOLE = 1e6  # seconds: no chapter is longer
BY = 'speaker,chapter'
NOISE = ('--snr', 5, 20, '--seed', 0)  # fixed, so that results compare
COLUMNS = ('test', 'WER, % (95% interval)', 'CER, % (95% interval)', 'rows', 'hours')
MEMORY_COLUMNS = ('test', 'memory', 'WER, % (95% interval)', 'WER against frozen, % (95% interval)')


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', type=Path, required=True, help='folder of LibriSpeech, as for training')
    parser.add_argument('--model', type=Path, required=True, metavar='FILE.nemo')
    parser.add_argument('--output-dir', type=Path, help='default: runs/evaluation-librispeech/NAME OF THE MODEL')
    parser.add_argument('--subsets', nargs='+', metavar='NAME', help=f'default: {" and ".join(SUBSETS)}, if there')
    parser.add_argument(
        '--seconds', nargs='*', type=int, default=SECONDS, help='longest joined rows beside whole chapters (120 600)'
    )
    parser.add_argument('--batch-seconds', type=float, default=600, help='audio at a time, at least one row (600)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--jobs', type=int, help='processes that prepare audio (all cores)')
    args = parser.parse_args()
    if any(seconds < 1 for seconds in args.seconds) or not 0 < args.batch_seconds < math.inf:
        parser.error('--seconds and --batch-seconds must be above 0')
    if args.jobs is not None and args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: must be 1 or more')
    args.output_dir = args.output_dir or Path('runs/evaluation-librispeech', args.model.stem)
    return args


def command(*arguments) -> None:
    """Run `nemo-lact` here, so that NeMo is imported once; what it says goes to stderr.

    Raises:
        RuntimeError: it ended with an error, which it has printed.
    """
    from nemo_lact.cli import app

    words = [str(argument) for argument in arguments]
    with contextlib.redirect_stdout(sys.stderr):
        code = app(words, prog_name='nemo-lact', standalone_mode=False)
    if code:
        raise RuntimeError(f'stopped by: nemo-lact {" ".join(words)}')


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def kept(results: Path, sha256: str) -> dict[str, dict]:
    """Key -> part of an earlier results.json of this model."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        found = json.loads(results.read_text(encoding='utf-8'))
        if found['model']['sha256'] == sha256:
            return {part['key']: part for part in found['tests'] + found['adaptation']}
    return {}


def chosen_subsets(args: argparse.Namespace) -> list[str]:
    from nemo_lact.data.librispeech import find_tree

    tree = find_tree(args.data_dir)
    subsets = list(dict.fromkeys(args.subsets or [name for name in SUBSETS if (tree / name).is_dir()]))
    if not subsets:
        raise FileNotFoundError(
            f'no {" or ".join(SUBSETS)} in {tree}; get them with `nemo-lact data librispeech --data-dir '
            f'{args.data_dir} --subset test-clean --subset test-other --download-only`, or name others: --subsets'
        )
    return subsets


def prepare(args: argparse.Namespace) -> list[tuple[str, str, Path]]:
    """(subset, name of the test, manifest) of all tests, in the order of the table."""
    subsets, folder = chosen_subsets(args), args.data_dir / 'manifests-evaluation'
    jobs = () if args.jobs is None else ('--jobs', args.jobs)
    named = [word for name in subsets for word in ('--subset', name)]
    command('data', 'librispeech', '--data-dir', args.data_dir, '--skip-download', *named, '--output', folder, *jobs)
    tests = []
    for subset in subsets:
        clean = joined(folder / f'{subset}.json', args.seconds, jobs)
        tests += [(subset, name, manifest) for name, manifest in clean.items()]
        for name, manifest in clean.items():
            noisy = manifest.with_name(f'{manifest.stem}-noisy.json')
            command('data', 'noisy', manifest, '-o', noisy, '--by', BY, *NOISE, *jobs)
            tests.append((subset, f'{name}, noisy', noisy))
    return tests


def joined(source: Path, lengths: Sequence[int], jobs: Sequence) -> dict[str, Path]:
    """The utterances of a subset, and its rows of some lengths (seconds), from short to long."""

    def join(name: str, seconds: float) -> Path:
        target = source.with_name(f'{source.stem}-{name}.json')
        audio = ('--write-audio', target.with_suffix(''))
        command('data', 'longform', source, '--by', BY, '--seconds', seconds, '-o', target, *audio, *jobs)
        return target

    chapters, rows = join('chapters', WHOLE), {'utterances': source}
    longest = max(row['duration'] for row in read_rows(chapters))
    for seconds in sorted(set(lengths)):
        if seconds < longest:
            rows[f'rows of up to {seconds} s'] = join(f'{seconds}s', seconds)
        else:
            print(f'{source.stem}: no chapter is longer than {seconds} s; these rows are the chapters', file=sys.stderr)
    return {**rows, 'chapters': chapters}


def batch_size(args: argparse.Namespace, manifest: Path) -> int:
    return max(1, int(args.batch_seconds / max(row['duration'] for row in read_rows(manifest))))


def score(args: argparse.Namespace, manifest: Path) -> dict:
    """WER and CER of a manifest with intervals over its speakers."""
    from nemo_lact import bootstrap
    from nemo_lact.evaluation import count

    transcripts = args.output_dir / f'{manifest.stem}.jsonl'
    options = ('--batch-size', batch_size(args, manifest), '--device', args.device)
    command('evaluate', manifest, '--model', args.model, '--output', transcripts, *options)
    rows, speakers = read_rows(transcripts), {}
    for row in rows:
        speakers.setdefault(row['speaker'], Counter()).update(count(row['text'], row['pred_text']))
    columns = {key: [found[key] for found in speakers.values()] for key in next(iter(speakers.values()))}
    wrong = [sum(kinds) for kinds in zip(*(columns[key] for key in ('substitutions', 'insertions', 'deletions')))]
    return {
        'wer': bootstrap.rate(wrong, columns['words'])._asdict(),
        'cer': bootstrap.rate(columns['character_errors'], columns['characters'])._asdict(),
        'errors': sum(wrong),
        'words': sum(columns['words']),
        'rows': len(rows),
        'speakers': len(speakers),
        'hours': sum(row['duration'] for row in rows) / 3600,
    }


def measure_memory(args: argparse.Namespace, manifest: Path, clean: Path | None = None) -> dict:
    """What `evaluate --adaptation` found, without the sessions one by one, which its own file has."""
    target = args.output_dir / f'{manifest.stem}-adaptation.json'
    options = ('--batch-size', batch_size(args, manifest), '--device', args.device, '--session-key', 'chapter')
    options += () if clean is None else ('--clean-manifest', clean)
    command('evaluate', manifest, '--model', args.model, '--adaptation', '--output', target, *options)
    found = json.loads(target.read_text(encoding='utf-8'))
    return {key: value for key, value in found.items() if key not in ('per_session', 'rules')}


def why_no_memory(model: Path) -> str | None:
    from nemo.utils import logging

    from nemo_lact.inference.arms import why_not_arms
    from nemo_lact.transcription import load_model

    logging.setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        return why_not_arms(load_model(model, 'cpu'))


def percent(estimate: dict) -> str:
    if estimate['value'] is None:
        return '-'
    ends = [estimate[end] for end in ('low', 'high')]
    interval = '' if None in ends else f' ({100 * ends[0]:.2f} to {100 * ends[1]:.2f})'
    return f'{100 * estimate["value"]:.2f}{interval}'


def table(columns, lines) -> str:
    rows = [columns, ['---'] * len(columns), *lines]
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in rows)


def page(results: dict) -> str:
    """The Markdown table, and one of the memory if it was measured."""
    lines = [
        (f'{test["subset"]}, {test["name"]}', percent(test['wer']), percent(test['cer']), test['rows'],
         f'{test["hours"]:.2f}')
        for test in results['tests']
    ]  # fmt: skip
    text = table(COLUMNS, lines)
    lines = []
    for part in results['adaptation']:
        for name, found in ((part['name'], part['overall']), ('utterances, clean', part['clean'])):
            against = {entry['of']: entry for entry in found['differences'] if entry['to'] == 'frozen'} if found else {}
            for rule, rates in found['rates'].items() if found else ():
                change = percent(against[rule]['wer_relative']) if rule in against else ''
                lines.append((f'{part["subset"]}, {name}', rule, percent(rates['wer']), change))
    if lines:
        text += '\n' + table(MEMORY_COLUMNS, lines)
    return text


def main(args: argparse.Namespace) -> None:
    from nemo_lact.data.manifests import whole_file
    from nemo_lact.transcription import check_nemo_file

    check_nemo_file(args.model)
    tests = prepare(args)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    target = args.output_dir / 'results.json'
    model = {'file': args.model.name, 'sha256': digest(args.model)}
    done = kept(target, model['sha256'])
    results = {'model': model, 'noise': ' '.join(map(str, NOISE)), 'no_memory': None, 'tests': [], 'adaptation': []}

    def save() -> None:
        with whole_file(target) as file:
            json.dump(results, file, indent=1, ensure_ascii=False, allow_nan=False)

    def add(kind: str, subset: str, name: str, work, *manifests: Path) -> None:
        key = ' '.join([kind, *map(digest, manifests)])
        if key not in done:
            print(f'{subset}, {name}: {kind}', file=sys.stderr)
            done[key] = {'key': key, 'subset': subset, 'name': name, **work(args, *manifests)}
        results[kind].append(done[key])
        save()

    for subset, name, manifest in tests:
        add('tests', subset, name, score, manifest)
    results['no_memory'] = why_no_memory(args.model)
    save()
    if results['no_memory'] is None:
        manifests = {(subset, name): manifest for subset, name, manifest in tests}
        for subset in dict.fromkeys(subset for subset, _, _ in tests):
            clean, noisy = (manifests[subset, f'utterances{kind}'] for kind in ('', ', noisy'))
            add('adaptation', subset, 'utterances by chapter', measure_memory, clean)
            add('adaptation', subset, 'utterances by chapter, noisy', measure_memory, noisy, clean)
    else:
        print(f'no adaptation to measure: {results["no_memory"]}', file=sys.stderr)
    (args.output_dir / 'results.md').write_text(page(results), encoding='utf-8')
    print(page(results))


if __name__ == '__main__':
    try:
        main(parse_arguments())
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f'evaluate_librispeech.py: {error}')
