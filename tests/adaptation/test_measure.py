"""`nemo_lact.adaptation.measure`: every rule against the same done by hand with `transcribe_blocks`."""

import json

import numpy as np
import pytest
import torch
from small_models import RATE, build, decided, sound

from nemo_lact import evaluation
from nemo_lact.adaptation import measure
from nemo_lact.adaptation.sessions import donors, grouped
from nemo_lact.inference.arms import Arms
from nemo_lact.inference.longform import transcribe_blocks
from nemo_lact.modules.fast_weights import FastWeightMemory


def by_hand(model, rows, **options):
    """Texts of `transcribe_blocks` in the order of the rows."""
    found = {i: result['text'] for i, result, _ in transcribe_blocks(model, rows, **options)}
    return [found[i] for i in range(len(rows))]


def heard(model, rows, state=None, learn=True):
    """Texts of rows one after the other with one memory, and the memory after them."""
    texts = []
    for row in rows:
        ((_, result, after),) = transcribe_blocks(model, [row], state=_fresh(model, state), learn=learn)
        texts.append(result['text'])
        state = after
    return texts, state


def _fresh(model, state):
    return model.encoder.init_state(1).memory_only() if state is None else state


def errors_of(rows, texts):
    """Word and character errors of each session."""
    sums = {}
    for row, text in zip(rows, texts):
        c = evaluation.count(row['text'], text)
        words = c['substitutions'] + c['insertions'] + c['deletions']
        sums[row['session']] = sums.get(row['session'], np.zeros(2, int)) + (words, c['character_errors'])
    return {name: e.tolist() for name, e in sums.items()}


def measured(found, rule):
    return {s['session']: [s['word_errors'][rule], s['character_errors'][rule]] for s in found['per_session']}


def of(rows, name):
    return [row for row in rows if row['session'] == name]


def test_frozen_is_the_model_with_adaptation_off(model, spoken):
    found = measure(model, spoken, timing=False, leave_one_out=0)
    model.encoder.adaptation = False
    off = by_hand(model, spoken)
    assert Arms(model, spoken, 3).read(range(len(spoken))) == off
    assert measured(found, 'frozen') == errors_of(spoken, off)
    summary, _ = evaluation.score([{**row, 'pred_text': text} for row, text in zip(spoken, off)])
    rates = found['overall']['rates']['frozen']
    assert rates['wer']['value'] == pytest.approx(summary['wer'], abs=1e-6)
    assert rates['cer']['value'] == pytest.approx(summary['cer'], abs=1e-6)


def test_learning_is_carried_and_fresh_is_not(model, spoken):
    found = measure(model, spoken, timing=False, batch_size=2, leave_one_out=0)
    assert found['session_key'] == 'session' and found['sessions'] == 3
    fresh, carried = by_hand(model, spoken), by_hand(model, spoken, session_key='session')
    assert fresh != carried
    assert measured(found, 'fresh') == errors_of(spoken, fresh)
    assert measured(found, 'learning') == errors_of(spoken, carried)
    overall = found['overall']
    assert [(d['of'], d['to']) for d in overall['differences']] == [
        ('learning', 'frozen'), ('learning', 'fresh'), ('fresh', 'frozen')
    ]  # fmt: skip
    wer = {rule: overall['rates'][rule]['wer']['value'] for rule in ('learning', 'frozen')}
    against = overall['differences'][0]
    assert wer['learning'] > wer['frozen'] > 0  # the texts are those of the frozen model
    assert against['wer_points']['value'] == pytest.approx(wer['learning'] - wer['frozen'])
    assert against['wer_relative']['value'] == pytest.approx(wer['learning'] / wer['frozen'] - 1)
    assert against['wer_relative']['low'] <= against['wer_relative']['value'] <= against['wer_relative']['high']


def test_a_streaming_model_without_normalisation(tiny, rows):
    streams = dict(lact_mode='causal', causal_downsampling=True, att_context_style='chunked_limited')
    model = build({**tiny, **streams, 'att_context_size': [12, 3]})
    model.preprocessor.featurizer.normalize = None
    found = measure(decided(model), rows, timing=False, leave_one_out=0)
    assert measured(found, 'learning') == errors_of(rows, by_hand(model, rows, session_key='session'))
    assert measured(found, 'learning') != measured(found, 'frozen')
    assert found['lact_mode'] == 'causal' and found['normalize'] is None and found['notes'] == []


def test_no_steps_no_difference(model, spoken, monkeypatch):
    original = FastWeightMemory._steps
    monkeypatch.setattr(FastWeightMemory, '_steps', lambda self, x: (original(self, x)[0] * 0, original(self, x)[1]))
    found = measure(model, spoken, clean_rows=spoken[:3], timing=False)
    nothing = {'value': 0.0, 'low': 0.0, 'high': 0.0}
    parts = [found['overall'], found['cross'], found['leave_one_out'], found['clean'], *found['position']['buckets']]
    seen = [d for part in parts for entry in part['differences'] for d in list(entry.values())[2:]]  # after of, to
    # A bucket may have words of one session only, or none: then there is no interval, but the difference is 0.
    assert len(seen) > 40 and all(d == nothing or (d['value'] in (0.0, None) and d['low'] is None) for d in seen)
    assert all(d == nothing for part in parts[:4] for entry in part['differences'] for d in list(entry.values())[2:])
    for session in found['per_session']:
        assert len(set(session['word_errors'].values())) == len(set(session['character_errors'].values())) == 1


def test_cross_reads_the_memory_of_another_speaker(model, spoken):
    found = measure(model, spoken, timing=False, leave_one_out=0, batch_size=2)
    # s0 and s1 are of one speaker: both are given s2's memory, and s2 that of s0, the next of another speaker.
    assert found['cross']['pairs'] == [['s2', 's0'], ['s2', 's1'], ['s0', 's2']]
    expected, kept = {}, {}
    for donor, guest in found['cross']['pairs']:
        _, state = heard(model, of(spoken, donor))
        texts = [heard(model, [row], state, learn=False)[0][0] for row in of(spoken, guest)]
        expected |= errors_of(of(spoken, guest), texts)
        kept[guest] = texts
    assert measured(found, 'other') == expected
    assert expected != measured(found, 'frozen') and expected != measured(found, 'learning')


def test_leave_one_out_learns_from_all_others(model, spoken):
    found = measure(model, spoken, timing=False, leave_one_out=2, batch_size=3)['leave_one_out']
    errors = words = frozen = 0
    for name in ('s0', 's1', 's2'):
        session = of(spoken, name)
        for out in (0, len(session) - 1):  # two, as far apart as can be
            _, state = heard(model, session[:out] + session[out + 1 :])
            (text,), _ = heard(model, [session[out]], state, learn=False)
            c = evaluation.count(session[out]['text'], text)
            errors += c['substitutions'] + c['insertions'] + c['deletions']
            words, frozen = words + c['words'], frozen + 1  # of each text one word is wrong
    assert (found['rows'], found['words']) == (6, words)
    assert found['rates']['own']['wer']['value'] == pytest.approx(errors / words)
    assert found['rates']['frozen']['wer']['value'] == pytest.approx(frozen / words)
    assert {(d['of'], d['to']) for d in found['differences']} == {('own', 'frozen'), ('own', 'other')}


def test_buckets_hold_all_words_and_errors(model, spoken):
    found = measure(model, spoken, timing=False, leave_one_out=0)
    buckets, overall = found['position']['buckets'], found['overall']
    assert [(b['from'], b['to']) for b in buckets] == [(0.0, 10.0), (10.0, 70.0), (70.0, None)]
    assert sum(b['words'] for b in buckets) == overall['words'] == sum(len(r['text'].split()) for r in spoken)
    assert buckets[0]['words'] > 0 and buckets[1]['words'] > 0 and buckets[2]['units'] == 0
    for rule in ('frozen', 'fresh', 'learning'):
        errors = sum(b['words'] * b['rates'][rule]['wer']['value'] for b in buckets[:2])
        assert errors == pytest.approx(overall['rates'][rule]['wer']['value'] * overall['words'])
    assert buckets[2]['rates']['learning']['wer']['value'] is None


def test_the_model_is_as_before(model, rows):
    model.train()
    measure(model, rows, timing=True, leave_one_out=1)
    assert model.training and model.encoder.training and model.encoder.adaptation is True
    with pytest.raises(RuntimeError, match='gone.wav'):
        measure(model, [{**rows[0], 'audio_filepath': 'gone.wav'}])
    assert model.training and model.encoder.adaptation is True


def test_cost_is_a_ratio_of_passes_in_turns(model, rows, monkeypatch):
    arms, order = Arms(model, rows, 4), []
    ticks = {True: 3.0, False: 2.0}

    def timed(batches):
        order.append(model.encoder.adaptation)
        return ticks[model.encoder.adaptation] + len(order)

    monkeypatch.setattr(arms, '_timed', timed)
    found = arms.cost(rounds=2, seconds=8.0)
    assert order == [True, False] * 3
    assert found['rows'] == 2 and found['audio_seconds'] == 7.0  # a third row would be over 8 s
    assert found['ratio'] == pytest.approx(((3 + 3) / (2 + 4) + (3 + 5) / (2 + 6)) / 2)
    assert 'learning_seconds' not in found  # absolute times come from a GPU
    assert Arms(model, rows[:1]).cost(rounds=1)['ratio'] > 0


def test_rows_without_sessions_leave_parts_out(model, rows):
    plain = [{k: v for k, v in row.items() if k not in ('session', 'speaker')} for row in rows]
    found = measure(model, plain, timing=False)
    assert found['session_key'] is None and found['sessions'] == len(rows) == found['overall']['units']
    assert found['cross'] is None and found['leave_one_out'] is None
    assert list(found['overall']['rates']) == ['frozen', 'learning']
    notes = ' '.join(found['notes'])
    assert 'no cross test' in notes and 'no row is left out' in notes and 'normalize: per_feature' in notes
    summary, scored = evaluation.score([{**r, 'pred_text': t} for r, t in zip(plain, by_hand(model, plain))])
    wrong = [row['substitutions'] + row['insertions'] + row['deletions'] for row in scored]
    assert [s['word_errors']['learning'] for s in found['per_session']] == wrong
    assert found['overall']['rates']['learning']['wer']['value'] == pytest.approx(summary['wer'], abs=1e-6)


def test_sessions_without_speakers_are_each_another(rows):
    silent = [{k: v for k, v in row.items() if k != 'speaker'} for row in rows]
    _, sessions = grouped(silent, 'session')
    given, note = donors(silent, sessions, 'session')
    assert given == {0: 1, 1: 2, 2: 0} and 'counts as another speaker' in note
    assert donors(rows, sessions, 'session') == ({0: 2, 1: 2, 2: 0}, '')


def test_clean_rows_are_units_by_what_all_of_them_have(model, rows):
    clean = [{**rows[0], 'session': None}, *rows[1:4]]
    found = measure(model, rows, clean_rows=clean, timing=False, leave_one_out=0)['clean']
    assert found['session_key'] == 'speaker' and found['units'] == 2


def test_one_speaker_has_no_cross_test_and_no_intervals(model, rows):
    found = measure(model, rows[:4], session_key='speaker', timing=False)
    assert found['sessions'] == 2 and found['cross'] is not None
    ann = [row for row in rows if row['speaker'] == 'ann']
    found = measure(model, ann, session_key='speaker', timing=False)
    assert found['cross'] is None and found['overall']['rates']['learning']['wer']['low'] is None
    assert 'no intervals' in ' '.join(found['notes']) and 'of one speaker' in ' '.join(found['notes'])
    assert [(d['of'], d['to']) for d in found['leave_one_out']['differences']] == [('own', 'frozen')]


def test_rows_without_text_are_heard_but_not_scored(model, spoken):
    silent = [{**row, 'text': None} if row is spoken[0] else row for row in spoken]
    found, whole = (measure(model, r, timing=False, leave_one_out=0) for r in (silent, spoken))
    assert found['rows_scored'] == len(spoken) - 1 and '1 rows without text' in found['notes'][0]
    assert found['overall']['words'] == whole['overall']['words'] - len(spoken[0]['text'].split())
    texts = by_hand(model, spoken, session_key='session')
    assert measured(found, 'learning') == errors_of(spoken[1:], texts[1:])


def test_the_result_is_json(model, rows):
    found = measure(model, rows, clean_rows=rows[:2], half=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found['precision'] == 'bfloat16 autocast' and found['clean']['rows'] == 2
    assert list(found['clean']['rates']) == ['frozen', 'fresh']


def test_audio_in_memory_is_as_in_files(model, rows):
    import soundfile

    held = [{**row, 'audio': soundfile.read(row['audio_filepath'], dtype='float32')[0]} for row in rows]
    for row in held:
        del row['audio_filepath']
    found, expected = (measure(model, r, clean_rows=r[:2], timing=False, leave_one_out=1) for r in (held, rows))
    assert found == expected
    held[3]['audio'] = (held[3]['audio'] * 32767).astype('int16')
    with pytest.raises(ValueError, match='audio is int16'):
        measure(model, held)


@pytest.mark.parametrize(
    'change, options, message',
    [
        ({}, {'session_key': 'room'}, '--session-key room'),
        ({'session': None}, {}, "no 'session'"),
        ({'duration': None}, {}, "no 'duration'"),
        ({'text': ' '}, {'rows': 1}, "has a 'text' with words"),
        ({}, {'rows': 0}, 'no rows'),
        ({}, {'batch_size': 0}, 'batch_size=0'),
        ({}, {'leave_one_out': -1}, 'leave_one_out=-1'),
    ],
)
def test_bad_values_are_named(model, rows, change, options, message):
    rows = [{**rows[0], **change}, *rows[1:]][: options.pop('rows', None)]
    with pytest.raises(ValueError, match=message):
        measure(model, rows, **options)


def test_a_model_without_a_memory_is_refused(model, rows):
    model.encoder.config.lact_layers = []
    with pytest.raises(ValueError, match='has no memory'):
        measure(model, rows)
    model.encoder.config.lact_layers, model.encoder.config.adaptation = None, False
    with pytest.raises(ValueError, match='built with adaptation=false'):
        measure(model, rows)
    model.encoder = torch.nn.Identity()
    with pytest.raises(ValueError, match='Identity, not LaCTEncoder'):
        measure(model, rows)


def test_long_rows_share_no_batch_beyond_its_seconds(model, tmp_path, monkeypatch):
    import soundfile

    import nemo_lact.inference.arms as module

    rows = []
    for i, seconds in enumerate((9.0, 8.0, 2.0)):
        soundfile.write(tmp_path / f'{i}.wav', sound(seconds, i), RATE)
        rows.append({'audio_filepath': str(tmp_path / f'{i}.wav'), 'duration': seconds})
    whole = Arms(model, rows).read(range(3))
    monkeypatch.setattr(module, 'BATCH_SECONDS', 16.5)
    arms = Arms(model, rows)
    assert list(arms._groups([0, 1, 2], arms.seconds)) == [[0], [1, 2]]
    assert arms.read(range(3)) == whole
