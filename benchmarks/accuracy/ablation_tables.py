"""Tables of a folder of ablations: WER, against the base, learning against frozen, averaged weights.

And of precision.py's report.
"""

from statistics import mean

from tables import FROZEN, characters, gain, percent, table

AVERAGED = 'averaged weights'  # the pass of train.py --ema

MEANING = {
    'LaCT transformer': 'neither convolution nor macaron, 14 layers',
    'no convolution': 'wider feed-forwards instead',
    'no macaron': 'one feed-forward of twice the width',
    'no retention': '`lact_retention` 1 where the base has 0.8',
    'frozen at times': 'in 30% of the steps the memory does not learn, so its initial weights must do by themselves',
    'chunk jitter': 'in training a chunk of 32, 64, 128 or 256 frames at each step; scored at 128',
    'Muon': 'orthogonalised steps with `base_lr` 0.001',
    'rotary memory': '`ttt_nope: false`',
    'same step for any evidence': 'a step is a sum over the frames of a chunk and so grows with them; here it is '
    'divided by the share of the chunk that is filled, so that an utterance of 3 s moves the memory as far as 10 s',
    'two reads': 'the initial weights are read in any case; a second read, of those learned, is added by a gate that '
    'begins closed; no momentum',
    'two reads, InterCTC 0.1': 'two reads, and the CTC loss after half of the layers counts 0.1 (base: 0.3), that at '
    'the end the rest',
    'two reads, InterCTC 0.5': 'that, with 0.5',
    'two reads, window 16': 'the memory of two reads, and attention of 16 frames (1.3 s) to each side instead of 64',
    'no long rows': 'half of the batches of rows of one utterance, half of rows of 16 s (base: 35% and 35%, 30% long)',
    'more long rows': '60% of the batches of long rows',
    'causal': '`lact_mode: causal`, window and convolutions hear frames to come',
    'causal, chunk 32': 'a frame is read with what chunks of 2.6 s before its own taught, the first with the initial '
    'weights: only what is worth keeping for later speech is learned',
    'causal, chunk 32, more long rows': 'that, and 60% of the batches of long rows',
    'streaming': 'causal memory, window [64, 0], causal convolutions and front end',
    'both modes': 'one model; convolutions and front end causal, at each step either bidirectional with window '
    '[64, 64] or as "streaming"; scored in both',
    'two windows': 'one model; causal memory, convolutions and front end; window [64, 64] or [64, 0], scored '
    'with each',
    'CR-CTC': 'two masked views of half the rows, 0.2 × symmetric KL divergence between them, 12 time masks (base: 5)',
    'masks of the mean': 'SpecAugment writes the mean of the features (base: 0, louder than any speech)',
    'norm after each block': 'as Conformer has it',
    'biases': 'in the linear layers of the blocks, as FastConformer has them',
    'dropout 0.1': 'all three dropouts (base: 0.05)',
    'norm and biases': 'a norm after each block and biases as Conformer has them, a memory without momentum; trained '
    'with `lact_retention` 1, used with 0.8',
    'norm and biases, chunk 512': 'that, with chunks of 41 s',
    'norm and biases, dropout 0.1': 'that, with all three dropouts at 0.1',
    'norm and biases, memory not learning': 'that, with `adaptation: false`',
}

PRECISION = """\
The same weights, all but Newton-Schulz in fp32 (fast weights in fp64). fp64 is what the package does for an fp32 model:
its last two steps are in fp32. fp16 has matrices scaled by 256, bf16 is what LaCT's public code takes. The difference
is that of the encoder's output from fp64's with the same chunks, relative, as a mean over the voices; that of "frozen"
is all that the memory learns.
"""


def ablation_tables(reports: list[dict]) -> list[str]:
    """Parts of the page. A contestant of several seeds has a row of their mean, and a row of each seed."""
    base = next(r['base'] for r in reports if r['base'])
    rows = _rows(reports)
    names = [n for n in max((scores for _, _, scores in rows), key=len, default={}) if not n.endswith(FROZEN)]
    of_base = next((scores for name, _, scores in rows if name == base), None)
    steps = sorted({r['steps'] for r in reports})
    head = ['ablation', 'parameters', 'steps', 'loss', *names]
    parts = [
        f'{len(reports)} runs of {"-".join(map(str, dict.fromkeys((steps[0], steps[-1]))))} steps. WER in %, with 95% '
        'bootstrap intervals over the rows of a set; the loss is the last in training, which is not the same quantity '
        'in all (InterCTC, two views, length of the rows).\n',
        '\n'.join(f'- {name}: {MEANING[name]}' for name in MEANING if any(r['contestant'] == name for r in reports)),
        '',
        table(head, [[name, *_sizes(own), *(percent(scores.get(n)) for n in names)] for name, own, scores in rows]),
        'CER in %:\n',
        table(['ablation', *names], [[name, *(characters(scores.get(n)) for n in names)] for name, _, scores in rows]),
    ]
    if of_base is not None:
        against = [
            [name, *(gain(scores.get(n), of_base.get(n)) for n in names)] for name, _, scores in rows if name != base
        ]
        parts += [
            f'Errors against {base} (less than 0: fewer), the same rows drawn for both. Its seeds, each against their '
            'mean, show how much is chance; an interval over the rows does not hold that:\n',
            table(['ablation', *names], against),
        ]
    learning = [
        [name, *(gain(scores.get(n), scores.get(n + FROZEN)) for n in names)]
        for name, _, scores in rows
        if any(n.endswith(FROZEN) for n in scores)
    ]
    if learning:
        parts += [
            'Errors with the memory learning against frozen, the same weights:\n',
            table(['ablation', *names], learning),
        ]
    averaged = [
        [r['contestant'] + _seed(r, reports), *(gain(r['passes'][AVERAGED].get(n), r['scores'].get(n)) for n in names)]
        for r in reports
        if AVERAGED in r.get('passes', {})
    ]
    if averaged:
        parts += [
            'Errors with averaged weights against the last ones of the same run:\n',
            table(['ablation', *names], averaged),
        ]
    return parts


def precision_section(report: dict) -> str:
    """Part of the page, of a report of precision.py."""
    rows = report['rows']
    chunks, names, voices = (list(dict.fromkeys(row[key] for row in rows)) for key in ('chunk', 'precision', 'voice'))

    def cells(name: str, chunk: int) -> list[str]:
        own = [row for row in rows if (row['precision'], row['chunk']) == (name, chunk)]
        if len(own) < len(voices):  # the run was ended
            return ['', '']
        errors, words = (sum(column) for column in zip(*(pair for row in own for pair in row['words'])))
        return [f'{100 * errors / words:.1f}', f'{mean(row["difference"] for row in own):.1e}']

    head = ['Newton-Schulz in', *(f'{what}, chunk {chunk}' for chunk in chunks for what in ('WER %', 'difference'))]
    lengths = [row['seconds'] for row in rows]
    seconds = '-'.join(f'{x:.0f}' for x in dict.fromkeys((min(lengths), max(lengths))))
    where = f'on {report["device"]}, {report["date"]}'
    parts = [
        '## Newton-Schulz precision\n',
        f'One session of {seconds} s of each of {len(voices)} held-out voices, {where}:\n',
        f'    {report["command"]}\n',
        PRECISION,
        table(head, [[name, *(cell for chunk in chunks for cell in cells(name, chunk))] for name in names]),
    ]
    return '\n'.join(parts)


def _rows(reports: list[dict]) -> list[tuple[str, list[dict], dict]]:
    """Name, its reports, its scores: the base first, then by contestant; each way to score is a row."""
    groups: dict[str, list[dict]] = {}
    for r in sorted(reports, key=lambda r: (r['base'] is not None, r['contestant'], r['seed'])):
        groups.setdefault(r['contestant'], []).append(r)
    rows = []
    for name, own in groups.items():
        rows.append((name, own, mean_of_seeds([r['scores'] for r in own])))
        if len(own) > 1:
            rows += [(f'{name}, seed {r["seed"]}', [r], r['scores']) for r in own]
        for way in sorted({way for r in own for way in r.get('passes', {})} - {AVERAGED}):
            rows.append((f'{name}, {way}', own, mean_of_seeds([r['passes'][way] for r in own if way in r['passes']])))
    return rows


def mean_of_seeds(seeds: list[dict]) -> dict:
    """Set -> errors of each row and CER, means over the seeds; sets that all of them have, with the same rows."""
    found = {}
    for name in seeds[0]:
        scores = [s[name] for s in seeds if name in s]
        counts = [[n for _, n in s['words']] for s in scores]
        if len(scores) == len(seeds) and all(c == counts[0] for c in counts):
            found[name] = {'cer': mean(s['cer'] for s in scores)}
            for key in ('words', 'chars'):  # older reports have no characters of rows
                if all(key in s for s in scores):
                    rows = zip(*(s[key] for s in scores))
                    found[name][key] = [[mean(e for e, _ in row), row[0][1]] for row in rows]
    return found


def _sizes(own: list[dict]) -> list[str]:
    loss = [r['log'][-1]['loss'] for r in own if r['log']]
    steps = sorted({r['steps'] for r in own})
    return [
        f'{own[0]["parameters"] / 1e6:.1f}M', ' and '.join(map(str, steps)), f'{mean(loss):.2f}' if loss else ''
    ]  # fmt: skip


def _seed(report: dict, reports: list[dict]) -> str:
    several = sum(r['contestant'] == report['contestant'] for r in reports) > 1
    return f', seed {report["seed"]}' if several else ''
