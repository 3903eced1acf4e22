"""A report of one training run that a person reads in a minute: report.md, with report.png in it.

`read_history` takes the curves from the TensorBoard events that NeMo's exp_manager writes, so it works for any NeMo
CTC run, resumed ones included. `write_report` needs no NeMo and no torch.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FRAME_SECONDS = 0.01  # hop of NeMo's mel features
REFERENCE, RECOGNISED, FAINT = '#1b6e53', '#b3402a', '#9fb6d9'
MAIN = '#2b5797'


@dataclass
class History:
    """The curves of one run.

    Attributes:
        loss: (optimiser step, training loss) in order of steps.
        wer: (epochs done, word error rate of the validation set as a fraction) in order of epochs.
    """

    loss: list[tuple[int, float]] = field(default_factory=list)
    wer: list[tuple[int, float]] = field(default_factory=list)


def read_history(folder: str | Path) -> History:
    """Curves from all TensorBoard event files in `folder` (exp_manager's log folder). Empty if there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={'scalars': 0}).Reload()

    def scalars(tag: str) -> dict[int, float]:
        if tag not in events.Tags()['scalars']:
            return {}
        # A resumed run repeats the steps since its checkpoint: the values written last stand.
        ordered = sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        return {event.step: event.value for event in ordered}

    epochs = scalars('epoch')
    wer = {round(epochs[step]) + 1: value for step, value in sorted(scalars('val_wer').items()) if step in epochs}
    return History(loss=sorted(scalars('train_loss').items()), wer=sorted(wer.items()))


def write_report(
    folder: str | Path,
    history: History,
    wer: float,
    cer: float,
    samples: Sequence[Mapping],
    mel=None,
    facts: Mapping[str, object] | None = None,
    title: str = 'Training report',
    table_rows: int = 20,
    with_lm: Mapping[str, float] | None = None,
) -> Path:
    """Write `folder`/report.md and `folder`/report.png.

    Args:
        folder: made if it is not there.
        history: curves of the run; empty ones are said to be missing.
        wer: word error rate on held-out speech, greedy decoding, a fraction.
        cer: character error rate on held-out speech, greedy decoding, a fraction.
        samples: held-out utterances, each with `text` (what was said) and `pred_text` (what was recognised).
        mel: log-mel features of samples[0], [features, frames of 10 ms]; None leaves that panel out.
        facts: lines for the report's first table, in order.
        title: heading of the page and the picture.
        table_rows: utterances listed in report.md, from the first on.
        with_lm: `wer` and `cer` on the same speech with a language model; each sample then has `pred_text_lm` too.

    Returns:
        Path of report.md.

    Raises:
        ValueError: no samples, a sample without one of its texts, or `mel` is not two-dimensional.
    """
    if not samples:
        raise ValueError('samples is empty; a report needs at least one transcribed utterance')
    needed = ['text', 'pred_text'] + ['pred_text_lm'] * (with_lm is not None)
    for number, row in enumerate(samples, 1):
        missing = [key for key in needed if row.get(key) is None]
        if missing:
            raise ValueError(f"sample {number} has no '{missing[0]}', only {', '.join(row) or 'nothing'}")
    if mel is not None and np.ndim(mel) != 2:
        raise ValueError(f'mel has shape {np.shape(mel)}; it must be [features, frames]')
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _draw(folder / 'report.png', history, wer, with_lm, samples[0], mel, title)
    page = folder / 'report.md'
    page.write_text(_page(wer, cer, with_lm, samples, facts or {}, title, table_rows), encoding='utf-8')
    return page


def _page(wer, cer, with_lm, samples, facts, title, table_rows) -> str:
    def exact(key):
        return f'{sum(row["text"].split() == row[key].split() for row in samples)} of {len(samples)}'

    columns = {'text': 'said', 'pred_text': 'recognised'}
    rates = {
        'Word error rate, held-out speech': [f'{wer:.1%}'],
        'Character error rate, held-out speech': [f'{cer:.1%}'],
        'Utterances without an error': [exact('pred_text')],
    }
    head = ['', '']
    if with_lm is not None:
        columns = {'text': 'said', 'pred_text': 'greedy', 'pred_text_lm': 'with language model'}
        head = ['', 'greedy', 'with language model']
        for values, value in zip(
            rates.values(), (f'{with_lm["wer"]:.1%}', f'{with_lm["cer"]:.1%}', exact('pred_text_lm'))
        ):
            values.append(value)
    lines = [f'# {title}', '', *_table(head, [[name, *values] for name, values in rates.items()])]
    if facts:
        lines += ['', *_table(['', ''], facts.items())]
    lines += ['', '![Loss, word error rate and one utterance](report.png)', '']
    shown = samples[:table_rows]
    lines += [f'## Held-out utterances ({len(shown)} of {len(samples)})', '']
    lines += _table(columns.values(), [[row[key] or '*nothing*' for key in columns] for row in shown])
    return '\n'.join(lines) + '\n'


def _table(head, rows) -> list[str]:
    head = list(head)
    lines = [head, ['---'] * len(head), *rows]
    return [f'| {" | ".join(map(_cell, line))} |' for line in lines]


def _cell(value) -> str:
    return str(value).replace('|', '\\|').replace('\n', ' ')


def _draw(path, history, wer, with_lm, sample, mel, title) -> None:
    # Figure without pyplot: no global state, and no display needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2 if mel is None else 8.2), dpi=110, layout='constrained')
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, hspace=0.05)
    figure.suptitle(title, fontsize=15, fontweight='bold')
    panels = [['loss', 'wer']] if mel is None else [['loss', 'wer'], ['mel', 'mel']]
    axes = figure.subplot_mosaic(panels)
    for name in ('loss', 'wer'):
        axes[name].spines[['top', 'right']].set_visible(False)
        axes[name].grid(alpha=0.25)
    _draw_loss(axes['loss'], history.loss)
    _draw_wer(axes['wer'], history.wer, wer, with_lm)
    if mel is not None:
        _draw_mel(axes['mel'], np.asarray(mel, dtype=float), sample)
    figure.savefig(path)


def _draw_loss(axis, loss) -> None:
    axis.set(title='Training loss (CTC)', xlabel='optimiser step')
    if not loss:
        return _say_missing(axis)
    steps, values = np.array(loss, dtype=float).T
    width = max(1, len(values) // 20)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode='edge')
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)
    axis.plot(steps, values, color=FAINT, linewidth=1, label='as logged')
    axis.plot(steps, smooth, color=MAIN, linewidth=2.2, label=f'median of {width}')
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 20:
        axis.set_yscale('log')
    else:
        axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _draw_wer(axis, curve, wer, with_lm) -> None:
    axis.set(title='Word error rate', xlabel='epoch', ylabel='%')
    lines = [('held-out speech', wer, '--')]
    if with_lm is not None:
        lines = [('held-out, greedy', wer, '--'), ('held-out, with language model', with_lm['wer'], ':')]
    for label, value, style in lines:
        axis.axhline(100 * value, color=RECOGNISED, linestyle=style, linewidth=1.8, label=f'{label}: {value:.1%}')
    if curve:
        epochs, values = np.array(curve, dtype=float).T
        best = int(np.nanargmin(values)) if np.isfinite(values).any() else 0
        label = f'validation set, best {values[best]:.1%}'
        axis.plot(epochs, 100 * values, 'o-', color=MAIN, linewidth=2, markersize=3.5, label=label)
        axis.plot(epochs[best], 100 * values[best], 'o', color=MAIN, markersize=8)
    else:
        _say_missing(axis)
    axis.set_ylim(0, max([105, 100 * wer] + [100 * value + 5 for _, value in curve if np.isfinite(value)]))
    axis.legend(frameon=False)


def _draw_mel(axis, mel, sample) -> None:
    # Normalised features have a few extreme cells; without clipping they take all the colours.
    low, high = np.nanpercentile(mel, [2, 99.5])
    extent = (0, mel.shape[1] * FRAME_SECONDS, 0, mel.shape[0])
    axis.imshow(mel, origin='lower', aspect='auto', cmap='magma', vmin=low, vmax=high, extent=extent)
    axis.set(title='One held-out utterance', ylabel='mel channel')
    axis.set_xlabel('seconds', loc='right')
    texts = [('said', sample['text'], REFERENCE)]
    if 'pred_text_lm' in sample:
        texts += [('greedy', sample['pred_text'], RECOGNISED), ('with LM', sample['pred_text_lm'], RECOGNISED)]
    else:
        texts += [('recognised', sample['pred_text'], RECOGNISED)]
    for line, (label, text, colour) in enumerate(texts):
        height = -0.16 - 0.13 * line
        text = textwrap.shorten(text or '(nothing)', 88, placeholder=' ...')
        axis.text(0, height, label, transform=axis.transAxes, color='dimgray', fontsize=11)
        axis.text(0.1, height, text, transform=axis.transAxes, color=colour, fontsize=12, fontfamily='monospace')


def _say_missing(axis) -> None:
    axis.text(0.5, 0.5, 'not recorded', transform=axis.transAxes, ha='center', color='gray')
