"""report.py: the history read back from real event files, and the page and picture written from it."""

import numpy as np
import pytest
from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from nemo_lact.report import History, read_history, write_report

SAMPLES = [
    {'text': 'thank you for calling', 'pred_text': 'thank you for coming'},
    {'text': 'press one | or two', 'pred_text': 'press one | or two'},
    {'text': 'goodbye', 'pred_text': ''},
]
HISTORY = History(loss=[(step, 300.0 / step) for step in range(1, 200)], wer=[(e, 1.2 - 0.1 * e) for e in range(1, 11)])


def log(folder, values):
    with SummaryWriter(folder) as writer:
        for tag, value, step in values:
            writer.add_scalar(tag, value, step)


def test_history_holds_loss_by_step_and_wer_by_epoch(tmp_path):
    log(tmp_path, [('train_loss', 9.0, 4), ('train_loss', 5.0, 9), ('epoch', 0, 9), ('val_wer', 0.5, 9)])
    history = read_history(tmp_path)
    assert history.loss == [(4, 9.0), (9, 5.0)]
    assert history.wer == [(1, 0.5)]


def test_history_of_a_resumed_run_takes_the_repeated_steps_from_the_later_one(tmp_path):
    log(tmp_path, [('train_loss', 9.0, 4), ('train_loss', 8.0, 9)])
    log(tmp_path, [('train_loss', 7.0, 9), ('train_loss', 6.0, 14), ('epoch', 1, 14), ('val_wer', 0.25, 14)])
    history = read_history(tmp_path)
    assert history.loss == [(4, 9.0), (9, 7.0), (14, 6.0)]
    assert history.wer == [(2, 0.25)]


def test_history_of_a_folder_without_events_is_empty(tmp_path):
    assert read_history(tmp_path) == History()


def test_page_names_rates_facts_and_texts(tmp_path):
    page = write_report(tmp_path / 'new', HISTORY, 0.25, 0.1234, SAMPLES, facts={'Config': 'tiny'}, title='A run')
    text = page.read_text(encoding='utf-8')
    assert text.startswith('# A run\n')
    assert '| Word error rate, held-out speech | 25.0% |' in text
    assert '| Character error rate, held-out speech | 12.3% |' in text
    assert '| Utterances without an error | 1 of 3 |' in text
    assert '| Config | tiny |' in text
    assert '| thank you for calling | thank you for coming |' in text
    assert '| press one \\| or two | press one \\| or two |' in text  # a bar would end the cell
    assert '| goodbye | *nothing* |' in text
    assert '(report.png)' in text


def test_page_and_picture_hold_both_decodings(tmp_path):
    samples = [{**row, 'pred_text_lm': text} for row, text in zip(SAMPLES, ('thank you for calling', '', 'goodbye'))]
    rates = {'wer': 0.125, 'cer': 0.05}
    page = write_report(tmp_path / 'both', HISTORY, 0.25, 0.1234, samples, np.zeros((8, 50)), with_lm=rates)
    text = page.read_text(encoding='utf-8')
    assert '|  | greedy | with language model |' in text
    assert '| Word error rate, held-out speech | 25.0% | 12.5% |' in text
    assert '| Character error rate, held-out speech | 12.3% | 5.0% |' in text
    assert '| Utterances without an error | 1 of 3 | 2 of 3 |' in text
    assert '| thank you for calling | thank you for coming | thank you for calling |' in text
    assert '| goodbye | *nothing* | goodbye |' in text
    write_report(tmp_path / 'one', HISTORY, 0.25, 0.1234, SAMPLES, np.zeros((8, 50)))
    both, one = (imread(tmp_path / name / 'report.png') for name in ('both', 'one'))
    assert both.shape != one.shape or (both != one).any()
    with pytest.raises(ValueError, match="sample 1 has no 'pred_text_lm'"):
        write_report(tmp_path / 'no', HISTORY, 0.25, 0.1, SAMPLES, with_lm=rates)


def test_long_tables_are_cut(tmp_path):
    text = write_report(tmp_path, HISTORY, 0.5, 0.5, SAMPLES, table_rows=2).read_text(encoding='utf-8')
    assert '(2 of 3)' in text and 'goodbye' not in text


def test_picture_has_the_mel_below_the_curves(tmp_path):
    mel = np.random.default_rng(0).normal(size=(80, 300))
    write_report(tmp_path / 'with', HISTORY, 0.25, 0.1, SAMPLES, mel)
    write_report(tmp_path / 'without', HISTORY, 0.25, 0.1, SAMPLES)
    tall, flat = (imread(tmp_path / name / 'report.png') for name in ('with', 'without'))
    assert tall.shape[1] == flat.shape[1] and tall.shape[0] > flat.shape[0]
    colours = np.unique((tall[tall.shape[0] // 2 :, :, :3] * 255).astype(int).reshape(-1, 3), axis=0)
    assert len(colours) > 200  # the mel, not an empty panel


@pytest.mark.parametrize(
    'history',
    [
        History(),
        History(loss=[(5, 3.0)], wer=[(1, float('nan'))]),
        History(loss=[(1, float('inf')), (2, float('nan'))]),
    ],
    ids=['empty', 'one point', 'no finite loss'],
)
def test_odd_histories_still_give_a_report(tmp_path, history):
    write_report(tmp_path, history, 1.5, 1.0, SAMPLES)
    assert imread(tmp_path / 'report.png').size


@pytest.mark.parametrize(
    'samples, mel, message',
    [
        ([], None, 'samples is empty'),
        ([{'text': 'a'}], None, "sample 1 has no 'pred_text', only text"),
        (SAMPLES, np.zeros(80), r'mel has shape \(80,\)'),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(tmp_path, samples, mel, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / 'out', HISTORY, 0.5, 0.5, samples, mel)
    assert not (tmp_path / 'out').exists()
