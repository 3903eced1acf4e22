"""Cells and tables of docs/accuracy.md."""

import numpy as np

from nemo_lact.bootstrap import rate, relative_difference

FROZEN = ', frozen'  # ends the name of a set that was scored with the memory frozen


def percent(scores: dict | None) -> str:
    """WER with its 95% interval over the rows."""
    if scores is None:
        return ''
    errors, words = np.array(scores['words']).T
    value, low, high = rate(errors, words)
    return f'{100 * value:.1f}' + (f' ({100 * low:.1f} to {100 * high:.1f})' if low is not None else '')


def characters(scores: dict | None) -> str:
    """CER, with its 95% interval where the report has the counts of the rows (the older ones have not)."""
    if scores is None or scores.get('cer') is None:  # the first reports have none
        return ''
    return percent({'words': scores['chars']}) if 'chars' in scores else f'{100 * scores["cer"]:.1f}'


def gain(scores: dict | None, base: dict | None) -> str:
    """Errors against those of `base` on the same rows, relative, with the 95% interval; empty if one is not there."""
    if scores is None or base is None:
        return ''
    if [n for _, n in scores['words']] != [n for _, n in base['words']]:
        return 'other rows'
    errors, base = (np.array(s['words'])[:, 0] for s in (scores, base))
    value, low, high = relative_difference(errors, base)
    if value is None:  # the base has no errors
        return '-'
    return f'{100 * value:+.1f}%' + (f' ({100 * low:+.1f} to {100 * high:+.1f})' if low is not None else '')


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


PROBE = {  # key of a row of probe.py -> column
    'share': 'memory / attention', 'moved': 'weights moved', 'frozen': 'read changed by freezing',
    'same_voice': "by the same voice's past", 'other_voice': "by another's past",
    'voice_by_weights': 'voice known by the weights', 'voice_by_input': 'by the input',
}  # fmt: skip


def probe_section(report: dict, notes: str) -> str:
    """Part of the page, of a report of probe.py."""
    rows = [[str(row['layer']), *(f'{100 * row[key]:.0f}%' for key in PROBE)] for row in report['rows']]
    output = [f'{100 * report["output"][key]:.0f}%' if key in report['output'] else '' for key in PROBE]
    return '\n'.join([
        '## What the memory holds\n',
        f'{report["sessions"]} sessions, {report["seconds"] / 60:.0f} min, of {report["speakers"]} voices, fp32 on '
        f'{report["device"]}, {report["date"]}:\n',
        f'    {report["command"]}\n',
        notes,
        table(['layer', *PROBE.values()], [*rows, ['output', *output]]),
        f'The nearest session is of the same voice by chance in {100 * report["chance"]:.0f}%.\n',
    ])  # fmt: skip
