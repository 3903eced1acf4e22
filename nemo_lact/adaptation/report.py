"""What `measure` found, for people: tables on the terminal, a picture, and JSON."""

import json
from collections.abc import Iterator
from pathlib import Path

COLOURS = {'frozen': '#9fb6d9', 'fresh': '#5b8bd0', 'learning': '#2b5797', 'other': '#b3402a', 'own': '#1b6e53'}


def write(found: dict, path: str | Path) -> Path:
    """`path` gets the JSON, and a PNG beside it the picture, whose path is returned."""
    path = Path(path)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    picture = path.with_suffix('.png')
    draw(found, picture)
    return picture


def parts(found: dict) -> Iterator[tuple[str, dict]]:
    """The comparisons that were made, with their names."""
    titles = {'overall': 'all rows', 'cross': 'cross test', 'leave_one_out': 'leave one out', 'clean': 'clean speech'}
    for name, title in titles.items():
        if found[name] is not None:
            yield title, found[name]


def show(found: dict, console=None) -> None:
    """Tables and notes on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    key = f'sessions by {found["session_key"]}' if found['session_key'] else 'recordings'
    console.print(
        f'{found["sessions"]} {key}, {found["rows"]} rows, {found["seconds"] / 60:.1f} min, '
        f'{found["overall"]["words"]:,} words; {found["precision"]} on {found["device"]}; '
        f'{found["lact_mode"]} memory, chunks of {found["chunk_seconds"]:g} s',
        highlight=False,
    )
    rates = Table(title='Error rates with 95% intervals', title_justify='left')
    for column in ('', 'memory', 'WER', 'CER'):
        rates.add_column(column)
    differences = Table(title='Differences (paired, 95% intervals); below 0 is better', title_justify='left')
    for column in ('', 'memory', 'WER, relative', 'WER, points', 'CER, relative'):
        differences.add_column(column)
    for title, part in parts(found):
        _rates(rates, title, part)
        _differences(differences, title, part)
    places = Table(title='WER by position in the session', title_justify='left')
    buckets = found['position']['buckets']
    for column in ('', 'words', *buckets[0]['rates'], 'learning to frozen'):
        places.add_column(column)
    for bucket in buckets:
        wer = [_percent(rate['wer']) for rate in bucket['rates'].values()]
        places.add_row(_span(bucket), f'{bucket["words"]:,}', *wer, _percent(bucket['differences'][0]['wer_relative']))
    for table in (rates, differences, places):
        console.print(table)
    if found['cost'] is not None:
        console.print(_cost(found['cost']), highlight=False)
    for rule in _rules(found):
        console.print(f'{rule}: {found["rules"][rule]}', highlight=False, style='dim')
    for note in found['notes']:
        console.print(f'note: {note}', highlight=False, markup=False)


def draw(found: dict, path: str | Path) -> None:
    """All word error rates as bars, and those by position; intervals as thin lines."""
    # Figure without pyplot: no global state, and no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 4.6), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    bars, places = figure.subplots(1, 2)
    groups = [(title, part['rates']) for title, part in parts(found)]
    buckets = [(f'{_span(b)}\n{b["words"]:,} words', b['rates']) for b in found['position']['buckets'] if b['words']]
    for axis, named in ((bars, groups), (places, buckets)):
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='y', alpha=0.25)
        axis.set_xticks(range(len(named)), [name for name, _ in named])
    bars.set(title='Word error rate', ylabel='%')
    places.set(title='Word error rate by position in the session', xlim=(-0.5, len(buckets) - 0.5))
    for place, (_, rates) in enumerate(groups):
        for i, (rule, rate) in enumerate(rates.items()):
            at = place + (i - (len(rates) - 1) / 2) * 0.26
            bars.bar(at, 100 * rate['wer']['value'], 0.24, color=COLOURS[rule])
            _interval(bars, at, rate['wer'], 'black')
    for i, rule in enumerate(buckets[0][1]):
        at = [place + 0.06 * (i - 1) for place in range(len(buckets))]  # side by side, so that all can be seen
        places.plot(at, [100 * rates[rule]['wer']['value'] for _, rates in buckets], 'o-', color=COLOURS[rule])
        for x, (_, rates) in zip(at, buckets):
            _interval(places, x, rates[rule]['wer'], COLOURS[rule])
    patches = [Patch(color=COLOURS[rule], label=rule) for rule in _rules(found)]
    figure.legend(handles=patches, loc='outside lower center', ncols=len(patches), frameon=False)
    figure.savefig(path)


def _interval(axis, at: float, rate: dict, colour: str) -> None:
    if rate['low'] is not None and rate['high'] is not None:
        axis.vlines(at, 100 * rate['low'], 100 * rate['high'], color=colour, linewidth=1.3)


def _rates(table, title: str, part: dict) -> None:
    table.add_section()
    for i, (rule, rate) in enumerate(part['rates'].items()):
        table.add_row(title if i == 0 else '', rule, _percent(rate['wer']), _percent(rate['cer']))


def _differences(table, title: str, part: dict) -> None:
    table.add_section()
    for i, entry in enumerate(part['differences']):
        points = _percent(entry['wer_points'], unit='')
        relative = [_percent(entry[name]) for name in ('wer_relative', 'cer_relative')]
        table.add_row(title if i == 0 else '', f'{entry["of"]} to {entry["to"]}', relative[0], points, relative[1])


def _rules(found: dict) -> list[str]:
    used = {rule for _, part in parts(found) for rule in part['rates']}
    return [rule for rule in found['rules'] if rule in used]


def _percent(estimate: dict, unit: str = ' %') -> str:
    value, low, high = (estimate[name] for name in ('value', 'low', 'high'))
    if value is None:
        return '-'
    ends = '' if low is None and high is None else f' ({_end(low)} … {_end(high)})'
    return f'{100 * value:.1f}{unit}{ends}'


def _end(value: float | None) -> str:
    return '∞' if value is None else f'{100 * value:.1f}'


def _span(bucket: dict) -> str:
    return f'{bucket["from"]:g} s on' if bucket['to'] is None else f'{bucket["from"]:g} to {bucket["to"]:g} s'


def _cost(cost: dict) -> str:
    text = (
        f'time of encoder and decoder, learning / frozen: {cost["ratio"]:.2f} (rounds: {cost["low"]:.2f} to '
        f'{cost["high"]:.2f}), {cost["audio_seconds"]:.0f} s of audio in batches of up to {cost["batch_size"]}'
    )
    if 'learning_seconds' in cost:
        text += f'; {cost["learning_seconds"]:.3f} s and {cost["frozen_seconds"]:.3f} s'
    return text
