"""benchmarks/accuracy at a tiny size: corpus, training in NeMo's loop, another from its model, scores, page, texts."""

import difflib
import json
import os
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'data/asterisk_en'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / 'benchmarks').is_dir(), reason='needs a checkout'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='a tiny size for a CPU'),
]
TINY = '--steps 2 --minutes 0.2 --workers 0 --encoder n_layers=2 --score-seconds 4 --save'.split()


@pytest.fixture(scope='module')
def scripts():
    path = str(ROOT / 'benchmarks/accuracy')
    sys.path.insert(0, path)
    yield
    sys.path.remove(path)


def rows_of(split: str, count: int) -> list[dict]:
    lines = (DATA / f'{split}.json').read_text().splitlines()[:count]
    return [row | {'audio_filepath': str(DATA / row['audio_filepath'])} for row in map(json.loads, lines)]


@pytest.fixture(scope='module')
def corpus(scripts, tmp_path_factory):
    """The shards that corpus.py makes of manifests; one real voice stands for the held-out synthetic ones too."""
    from corpus import copy, load

    folder = tmp_path_factory.mktemp('corpus')
    for name, split, count in (('train-voice', 'train', 30), ('test-real', 'test', 3), ('test-voice0', 'dev', 3)):
        manifest = folder / f'{name}.json'
        manifest.write_text(''.join(json.dumps(row) + '\n' for row in rows_of(split, count)))
        hours = copy(folder, name, name, manifest)
        assert hours == pytest.approx(sum(row['duration'] for row in rows_of(split, count)) / 3600, rel=0.01)
    rows = load(folder)
    assert [row['text'] for row in rows] == [row['text'] for row in rows_of('train', 30)]
    assert all(len(row['sound']) == row['samples'] and abs(row['sound']).max() > 16000 for row in rows)
    return folder


def train(monkeypatch, corpus, out, contestant, *more) -> dict:
    import train

    monkeypatch.setattr(
        sys, 'argv', ['train.py', contestant, '--corpus', str(corpus), '--output', str(out), *TINY, *more]
    )
    train.main()
    (path,) = out.glob('*.json')
    return json.loads(path.read_text())


def restored(path: Path) -> dict:
    from nemo.collections.asr.models import ASRModel

    return dict(ASRModel.restore_from(str(path), map_location='cpu').named_parameters())


def test_two_trainings_and_their_page(scripts, corpus, monkeypatch, tmp_path):
    import contestants
    import release
    import report
    import retention

    # 30 prompts have too few different words for 256 subwords
    monkeypatch.setattr(contestants.tokenizer, '__defaults__', (64,))
    first = train(monkeypatch, corpus, tmp_path / 'first', 'LaCT-Conformer')
    assert first['steps'] == 2 and first['sources'] == ['train-voice']
    scores = first['scores']
    assert {'real, utterances', 'utterances, clean', '1 h, noisy', '1 h, noisy, frozen'} <= set(scores)
    assert all(s['words'] and s['wer'] >= 0 for s in scores.values())
    sentences = sum(len(row['text'].split()) for row in rows_of('dev', 3))
    assert sum(words for _, words in scores['1 h, clean']['words']) <= sentences

    start = tmp_path / 'first/LaCT-Conformer-0.nemo'
    options = ['--init', str(start), '--seed', '1', '--lr', '1e-9', '--not-frozen']
    second = train(monkeypatch, corpus, tmp_path / 'second', 'LaCT-Conformer', *options)
    assert set(second['scores']) == {name for name in scores if not name.endswith('frozen')}
    before, after = (restored(path) for path in (start, tmp_path / 'second/LaCT-Conformer-1.nemo'))
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)

    released = tmp_path / 'released.nemo'
    options = ['release.py', str(start), '--output', str(released), '--encoder', 'lact_retention=0.5']
    monkeypatch.setattr(sys, 'argv', options)
    release.main()
    settings = release.models.EncDecCTCModelBPE.restore_from(str(released), return_config=True)
    assert settings.encoder.lact_retention == 0.5 and settings.tokenizer.dir == 'tokenizer'

    table = tmp_path / 'retention.json'
    options = ['retention.py', str(released), '--corpus', str(corpus), '--seconds', '3', '--output', str(table)]
    monkeypatch.setattr(sys, 'argv', [*options, '--shards', 'test-voice', 'test-real'])
    retention.main()
    rows = json.loads(table.read_text())['rows']
    expected = product(('test-voice0', 'test-real'), (None, 1.0, 0.9, 0.8, 0.5))
    assert [(row['voice'], row['retention']) for row in rows] == list(expected)
    assert all(row['seconds'] > 3 and row['words'][0][1] > 0 for row in rows)

    monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    (tmp_path / 'docs/figures').mkdir(parents=True)
    monkeypatch.setattr(sys, 'argv', ['report.py', '--keep', str(tmp_path / 'first'), '--name', 'tiny'])
    report.main()
    page = (tmp_path / 'docs/accuracy.md').read_text()
    assert '## Tiny' in page and '| LaCT-Conformer |' in page and 'learning and frozen' in page
    (name, kept), *_ = json.loads((tmp_path / 'results/tiny/LaCT-Conformer-0.json').read_text())['scores'].items()
    errors, characters = map(sum, zip(*kept['chars']))
    assert f'| {name} | {100 * errors / characters:.1f} (' in page.split('CER in %:')[1]
    assert (tmp_path / 'docs/figures/accuracy-tiny.png').stat().st_size > 1000


def test_batches_that_memory_is_too_short_for_are_halved(scripts, corpus, monkeypatch):
    import score
    from corpus import load

    from nemo_lact import starter
    from nemo_lact.transcription import load_model

    model, rows, sizes = load_model(starter.FILE, 'cpu'), load(corpus, 'train')[:7], []
    expected = score.transcribe(model, rows, noisy=True)
    whole = score._greedy

    def small(model, batch, *more):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError
        return whole(model, batch, *more)

    monkeypatch.setattr(score, '_greedy', small)
    assert score.transcribe(model, rows, noisy=True) == expected and any(expected)
    assert sizes[0] == 7 and sizes[1] < 7 and sum(n for n in sizes if n <= 2) == 7

    monkeypatch.setattr(score, '_greedy', lambda *a: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError))
    with pytest.raises(torch.cuda.OutOfMemoryError):  # a single row
        score.transcribe(model, rows, noisy=True)


def untrained(corpus, folder, contestant, **more):
    """A narrow model of a contestant, as .nemo, and it."""
    from ablation_contestants import RECIPES
    from contestants import EncDecCTCModelBPE, centre, config, tokenizer
    from corpus import load

    subwords = tokenizer([row['text'] for row in load(corpus)], folder / 'tokenizer', 64)
    narrow = dict(d_model=64, n_layers=2, dropout=0.0, dropout_pre_encoder=0.0, dropout_att=0.0)
    recipe = RECIPES[contestant]
    model = EncDecCTCModelBPE(config(recipe, recipe.encoder | narrow | more, subwords, 1e-3, 10))
    centre(model)
    model.save_to(str(folder / 'model.nemo'))
    return folder / 'model.nemo', model.eval()


def test_newton_schulz_in_every_precision_and_its_table(scripts, corpus, monkeypatch, tmp_path):
    import precision
    import report
    from voices import voices

    from nemo_lact import ops
    from nemo_lact.ops import fast_weights

    path, model = untrained(corpus, tmp_path, 'Muon')
    results = tmp_path / 'results/precision.json'
    results.parent.mkdir()
    options = ['--seconds', '3', '--chunks', '32', '4', '--output', str(results)]
    monkeypatch.setattr(sys, 'argv', ['precision.py', str(path), '--corpus', str(corpus), *options])
    precision.main()
    rows = json.loads(results.read_text())['rows']
    ways = ('fp64', 'frozen', 'fp32', 'fp16', 'bf16')
    assert [(r['chunk'], r['precision']) for r in rows] == [(c, way) for c in (32, 4) for way in ways]
    assert all(r['voice'] == 'test-voice0' and r['seconds'] > 3 and r['words'][0][1] > 0 for r in rows)
    for chunk in (32, 4):
        far = {r['precision']: r['difference'] for r in rows if r['chunk'] == chunk}
        assert far['fp64'] == 0 < far['fp32'] < 0.1 * far['fp16'] and 2 * far['fp16'] < far['bf16']
        assert far['frozen'] > 10 * far['fp32']

    ((_, _, session),) = voices(corpus, 3)
    _, found = precision.heard(model, session, 'fp64', 4)
    assert ops.implementation() == 'auto' and fast_weights.orthogonalise is ops.orthogonalise
    assert model.encoder.config.lact_chunk_size == 128 and model.encoder.adaptation
    model.encoder.config.lact_chunk_size = 4
    with torch.inference_mode():
        sound = torch.from_numpy(session[0]['sound']).float()[None] / 32768
        features, frames = model.preprocessor(input_signal=sound, length=torch.tensor([sound.size(1)]))
        plain, frames = model.encoder(audio_signal=features, length=frames)
    assert frames == len(found) > 30 and torch.equal(plain[0].T.double(), found)

    monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    (tmp_path / 'docs').mkdir()
    monkeypatch.setattr(sys, 'argv', ['report.py'])
    report.main()
    section = (tmp_path / 'docs/accuracy.md').read_text().split('## Newton-Schulz precision')[1]
    table = [line.strip('| ').split(' | ') for line in section.splitlines() if line.startswith('|')][2:]
    of = {(r['precision'], r['chunk']): (f'{100 * r["wer"]:.1f}', f'{r["difference"]:.1e}') for r in rows}
    assert table == [[way, *of[way, 32], *of[way, 4]] for way in ways]


def test_fp16_of_the_precisions_rounds_as_the_package_does(scripts):
    import precision

    from nemo_lact.ops import newton_schulz_half as half

    m = torch.linalg.qr(torch.randn(3, 32, 32, dtype=torch.float64))[0] + 0.01 * torch.randn(3, 32, 32)
    size = m.norm(dim=(-2, -1), keepdim=True)
    ours, truth = (precision.PRECISIONS[name](m, True) for name in ('fp16', 'fp64'))
    theirs = half.forward((m * half.SCALE / size).half()).double() / half.SCALE
    assert (ours - theirs).norm() < 0.5 * (theirs - truth).norm() < 1e-3 * truth.norm()


@pytest.mark.parametrize('contestant', ['LaCT-Conformer', 'FastConformer local', 'Muon'])
def test_precision_refuses_a_model_that_cannot_have_them(scripts, corpus, monkeypatch, tmp_path, contestant):
    import precision

    wide = contestant == 'Muon'
    path, _ = untrained(corpus, tmp_path, contestant, **(dict(inter_multi=2.0) if wide else {}))
    monkeypatch.setattr(sys, 'argv', ['precision.py', str(path), '--corpus', str(corpus)])
    with pytest.raises(SystemExit, match='inter_multi is 2.0' if wide else 'train.py Muon'):
        precision.main()


@pytest.mark.parametrize('contestant', ['FastConformer full', 'two reads'])
def test_losses_of_the_middle_and_the_end_in_use_and_in_training(contestant, scripts, corpus, monkeypatch, tmp_path):
    import halves
    from ablation_contestants import two_reads
    from corpus import load

    from nemo_lact import ops

    monkeypatch.setattr(ops, 'use_implementation', lambda name: None)  # for the tests after this one
    path, model = untrained(corpus, tmp_path, contestant, dropout=0.3)
    options = []
    if contestant == 'two reads':  # as train.py saves it
        two_reads(model.encoder)
        with torch.no_grad():
            for layer in model.encoder.layers:
                layer.mixer.memory.gate_proj.learned.bias.fill_(1.0)
        model.save_to(str(path))
        options = ['--contestant', contestant]
    out = tmp_path / 'halves.json'
    arguments = [str(path), '--corpus', str(corpus), '--shards', 'train-voice', '--rows', '6', '--output', str(out)]
    monkeypatch.setattr(sys, 'argv', ['halves.py', *arguments, *options])
    halves.main()
    found = {(row['rows'], row['mode']): row for row in json.loads(out.read_text())['rows']}
    assert len(found) == 4
    used, trained = found['utterances', 'in use'], found['utterances', 'training']
    assert abs(used['end'] - trained['end']) > 0.01 and abs(used['middle'] - trained['middle']) > 0.01

    rows = sorted(random.Random(0).sample(load(corpus, 'train-voice'), 6), key=lambda row: row['samples'])
    model = halves.opened(path, *options[1:] or [None])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with halves.dropping(model):
        halves.losses(model, rows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    middle, end = halves.losses(model, rows)
    assert (middle, end) == pytest.approx((used['middle'], used['end']), rel=1e-5)  # and dropout is off again

    lengths = torch.tensor([row['samples'] for row in rows])
    sound = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row['sound'] / 32768).float() for row in rows], True)
    said = [torch.tensor(model.tokenizer.text_to_ids(row['text'])) for row in rows]
    counts = torch.tensor([len(tokens) for tokens in said])
    targets = torch.nn.utils.rnn.pad_sequence(said, True)
    with torch.no_grad():
        log_probs, frames, _ = model(input_signal=sound, input_signal_length=lengths)
        by_nemo = model.loss(log_probs=log_probs, targets=targets, input_lengths=frames, target_lengths=counts)
    assert bool((counts < frames).all()) and end == pytest.approx(by_nemo.item(), rel=1e-4)
    del model.encoder.layers[1]  # what is left ends where half of the layers did
    assert halves.losses(model, rows)[1] == pytest.approx(middle, rel=1e-4)


def test_probe_of_what_the_memory_holds_and_its_table(scripts, corpus, monkeypatch, tmp_path):
    import probe
    import report

    from nemo_lact import ops

    path, model = untrained(corpus, tmp_path, 'LaCT-Conformer', lact_chunk_size=16)
    rows = [row | {'speaker': 'ab'[i % 2]} for i, row in enumerate(rows_of('train', 16))]
    manifest, results = tmp_path / 'two.json', tmp_path / 'results/probe.json'
    manifest.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    results.parent.mkdir()
    options = ['--manifest', str(manifest), '--seconds', '4', '--output', str(results)]
    monkeypatch.setattr(sys, 'argv', ['probe.py', str(path), *options])
    probe.main()
    found = json.loads(results.read_text())
    assert ops.implementation() == 'auto' and found['speakers'] == 2 and found['sessions'] >= 4
    assert [row['layer'] for row in found['rows']] == [1, 2]
    for row in found['rows']:
        assert row['moved'] > 1e-4 and row['share'] > 0 and row['frozen'] > 0
        assert 0 < row['same_voice'] and 0 < row['other_voice'] and 0 <= row['voice_by_weights'] <= 1
    assert 0 < found['output']['other_voice'] < 1

    session = probe.joined(manifest, 4.0)[0]
    features = probe.features_of(model, session)
    with torch.inference_mode():
        plain, frames = model.encoder(audio_signal=features, length=torch.tensor([features.size(2)]))
    fresh = probe.hear(model.encoder, features)
    assert torch.equal(plain[0].T, fresh.output) and frames == len(fresh.reads[1]) == len(fresh.near[0])
    again = probe.hear(model.encoder, features, model.encoder.init_state(1))
    assert probe.relative(fresh.output, again.output) < 1e-6
    mixer = model.encoder.layers[0].mixer
    with torch.inference_mode():
        x = fresh.inputs[0][None]
        cos, sin = (torch.ones(1, 1), torch.zeros(1, 1))
        q, k, v = mixer.qkv(x).chunk(3, dim=-1)
        read, _ = mixer.memory(x, q, k, v, torch.ones(x.shape[:2], dtype=torch.bool), cos, sin, True, None, False)
    assert probe.relative(read[0], fresh.reads[0]) < 1e-5

    monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'results/probe.md').write_text('What it says.\n')
    monkeypatch.setattr(sys, 'argv', ['report.py'])
    report.main()
    section = (tmp_path / 'docs/accuracy.md').read_text().split('## What the memory holds')[1]
    table = [line.strip('| ').split(' | ') for line in section.splitlines() if line.startswith('|')][2:]
    assert 'What it says.' in section and [line[0] for line in table] == ['1', '2', 'output']
    assert table[1][2] == f'{100 * found["rows"][1]["moved"]:.0f}%'


def test_voices_are_told_apart_by_the_nearest_session(scripts):
    import probe

    far = torch.tensor([[9.0, 1], [9, 2], [-9, 1], [-9, 2], [-9, 3]])
    assert probe.same_speaker(far, ['a', 'a', 'b', 'b', 'b']) == 1
    assert probe.same_speaker(far, ['a', 'b', 'c', 'c', 'd']) == pytest.approx(1 / 5)  # the third's
    assert probe.same_speaker(far, list('abcde')) == 0
    assert probe.chance(['a', 'a', 'b', 'b', 'b']) == pytest.approx((2 * 1 + 3 * 2) / 5 / 4)
    begun = probe.starts(['s0', 's1', 's2', 's3'], ['a', 'b', 'a', 'b'], 2)
    assert begun == {'frozen': None, 'same_voice': 's0', 'other_voice': 's3'}


def test_probe_needs_a_memory_and_two_voices(scripts, corpus, monkeypatch, tmp_path):
    import probe

    path, _ = untrained(corpus, tmp_path, 'FastConformer local')
    manifest = tmp_path / 'one.json'
    manifest.write_text(''.join(json.dumps(row) + '\n' for row in rows_of('train', 6)))
    monkeypatch.setattr(sys, 'argv', ['probe.py', str(path), '--manifest', str(manifest)])
    with pytest.raises(SystemExit, match='no memory that learns'):
        probe.main()
    with pytest.raises(SystemExit, match='fewer than two speakers'):
        probe.joined(manifest, 3.0)


def test_a_corpus_without_held_out_voices_is_named(scripts, tmp_path):
    from voices import voices

    with pytest.raises(FileNotFoundError, match='test-voice.*corpus.py'):
        list(voices(tmp_path, 3))


@pytest.mark.parametrize('exchange', [False, True])
def test_sessions_of_voices_that_no_training_has(scripts, monkeypatch, tmp_path, exchange):
    import unseen
    from accents import EXCHANGES
    from corpus import HELD_OUT, TESTED
    from texts import split

    from nemo_lact.data import audio

    pytest.importorskip('espeakng_loader')
    animals = 'cat dog hen fox'.split()
    texts = [f'the {a} {b} sat on the mat' for a in 'red old big odd sad'.split() for b in animals]
    (tmp_path / 'texts.txt').write_text('\n'.join(texts))
    assert 0 < sum(split(text) == 'test' for text in texts) < len(texts)
    options = ['unseen.py', str(tmp_path / 'out'), '--texts', str(tmp_path / 'texts.txt'), '--seconds', '2']
    options += ['--exchange'] if exchange else []
    monkeypatch.setattr(sys, 'argv', options)
    unseen.main()
    rows = [json.loads(line) for line in (tmp_path / 'out/unseen.json').read_text().splitlines()]
    assert {split(row['text']) for row in rows} == {'test'}
    assert len({row['speaker'] for row in rows}) == 2 * len(HELD_OUT)
    assert all(any(f'+{variant}-' in row['speaker'] for variant in HELD_OUT) for row in rows)
    accents = {int(row['speaker'].split('-')[-1]) for row in rows if exchange}
    assert not accents or min(accents) > EXCHANGES + TESTED and len(accents) == 2 * len(HELD_OUT)
    samples, rate = audio.read(tmp_path / 'out' / rows[-1]['audio_filepath'])
    assert rate == 16000 and len(samples) / rate == pytest.approx(rows[-1]['duration'], abs=1e-3)
    assert abs(samples).max() > 0.3


@pytest.fixture
def wordnet(tmp_path):
    """A folder as the package has it: a line of licence, and entries with fields as wndb(5) has them."""
    lines = [
        '  1 this is the licence | that is not spoken in any case',
        '05 03 n 01 cat 0 001 @ 07 n 0000 | the brown cat of a house; "the red cat sat on the mat"',
        '06 03 n 02 car 0 auto 0 000 | a thing with four wheels; (in towns) seen with 3 people in it',
        '07 03 n 01 pet 0 001 ~ 05 n 0000 | a small animal kept by people; "the old dog sat on the mat"',
        '08 03 n 01 dog 0 002 ~ 06 n 0000 @ 07 n 0000 | that which barks in the night',
        '09 03 n 01 mat 0 000 | where the red cat sat on the mat today',
    ]
    (tmp_path / 'data.noun').write_text('\n'.join(lines))
    return tmp_path


CAT, CAR, PET, DOG = ('the brown cat of a house', 'a thing with four wheels', 'a small animal kept by people',
                      'that which barks in the night')  # fmt: skip


def test_definitions_come_by_field_and_those_for_training_have_nothing_of_the_tests(scripts, monkeypatch, wordnet):
    import texts

    tested = ['the red cat sat on the mat']
    monkeypatch.setattr(texts, 'split', lambda text: 'test' if text in tested else 'train')
    examples = texts.sentences(wordnet)
    assert examples == [*tested, 'the old dog sat on the mat']
    assert texts.definitions(wordnet, examples) == [CAR, PET, CAT, DOG]  # without the one that has the test's words
    options = ['texts.py', str(wordnet / 'out.txt'), '--wordnet', str(wordnet), '--definitions']
    monkeypatch.setattr(sys, 'argv', options)
    texts.main()
    assert (wordnet / 'out.txt').read_text().splitlines() == [CAR, PET, CAT, DOG]
    monkeypatch.setattr(sys, 'argv', options[:-1])
    texts.main()
    assert (wordnet / 'out.txt').read_text().splitlines() == examples
    tested.append('where the red cat sat on the mat today')  # a definition for test may share words with an example
    assert texts.definitions(wordnet, examples)[-1] == tested[1]


def test_verbs_that_are_kinds_of_each_other_end_the_walk(scripts, wordnet):
    import texts

    lines = ['01 29 v 01 a 0 001 @ 02 v 0000 01 + 08 00 | to one thing', '02 29 v 01 b 0 001 @ 01 v 0000 00 | to two']
    (wordnet / 'data.verb').write_text('\n'.join(lines))
    assert [gloss.strip() for gloss in texts.by_field(wordnet)][-2:] == ['to two', 'to one thing']


def test_speakers_of_fields_say_neighbours_and_are_scored_apart(scripts, corpus, monkeypatch, tmp_path):
    import corpus as making
    from score import plan

    pytest.importorskip('espeakng_loader')
    words = ['red old big odd sad shy'.split(), 'cat dog hen fox cow'.split(), 'mat box bed'.split()]
    lines = [f'the {a} {b} sat on the {c}' for a, b, c in product(*words)]
    (tmp_path / 'texts.txt').write_text('\n'.join(lines))
    texts = str(tmp_path / 'texts.txt')
    options = [str(tmp_path / 'out'), '--texts', texts, '--fields', texts, '--jobs', '1']
    hours = ['--hours', '0.003', '--field-hours', '0.03', '--test-hours', '0.003']
    monkeypatch.setattr(sys, 'argv', ['corpus.py', *options, *hours])
    making.main()
    for texts, shard in zip(making.parts(lines), ('train-fields', 'test-fields')):
        assert len(texts) > 3
        rows, speakers = making.load(tmp_path / 'out', shard), {}
        for row in rows:
            speakers.setdefault(row['speaker'], []).append(texts.index(row['text']))
        assert len(rows) > 3
        for own in speakers.values():
            assert all((b - a) % len(texts) == 1 for a, b in zip(own, own[1:]))
    sets = plan(tmp_path / 'out')
    assert sets['fields, 10 min, noisy'] == ('test-fields', 600, True) and sets['10 min, noisy'][0] == 'test-voice'
    assert not any(name.startswith('fields0') for name in sets)
    assert not any(name.startswith('fields') for name in plan(corpus))


def test_an_accent_replaces_the_same_sounds_throughout_a_speaker(scripts):
    import accents

    pytest.importorskip('espeakng_loader')
    rules = [accents.rules(n) for n in range(50)]
    assert rules[7] == accents.rules(7) and len({tuple(r) for r in rules}) == 50 and accents.rules(7, 0.0) == []
    for _, flags, sound, other in (line.split() for lines in rules for line in lines):
        assert flags == '0' and other in accents.REPLACEMENTS[sound].split() and other != sound
    share = sum(map(len, rules)) / 50 / len(accents.REPLACEMENTS)
    assert share == pytest.approx(accents.SHARE, abs=0.05)


def test_sounds_that_change_places_are_in_one_pair_each(scripts):
    import accents

    every = [accents.exchanged(accents.EXCHANGES + n) for n in range(50)]
    pairs = {pair.strip() for line in accents.PAIRS.strip().splitlines() for pair in line.split('|')}
    for n, own in enumerate(every):
        sounds = [sound for pair in own for sound in pair]
        assert len(set(sounds)) == len(sounds) and {' '.join(pair) for pair in own} <= pairs
        moves = dict(rule.split()[2:] for rule in accents.rules(accents.EXCHANGES + n))
        assert sorted(moves) == sorted(sounds) and all(moves[moves[sound]] == sound for sound in sounds)
    assert len(set(map(tuple, every))) == 50 and 21 < sum(map(len, every)) * 2 / 50 < 25
    assert accents.exchanged(accents.EXCHANGES, 0.0) == []


def test_a_corpus_with_accents_and_its_tests(scripts, tmp_path):
    from corpus import TESTED, load, parts
    from score import plan

    pytest.importorskip('espeakng_loader')
    words = 'red old big odd sad shy'.split(), 'cat dog hen'.split()
    lines = [f'the {a} {b} sat on the mat' for a, b in product(*words)]
    (tmp_path / 'texts.txt').write_text('\n'.join(lines))
    script = [sys.executable, str(ROOT / 'benchmarks/accuracy/corpus.py'), str(tmp_path / 'out'), '--jobs', '1']
    options = ['--texts', str(tmp_path / 'texts.txt'), '--hours', '0.005', '--test-hours', '0.001', '--accents', '1']
    options += ['--drawn', '2']
    places = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    # In a process of its own: the library reads one folder of data.
    subprocess.run([*script, *options], check=True, env=os.environ | dict(PYTHONPATH=places))
    told = {shard: {row['speaker'] for row in load(tmp_path / 'out', shard)} for shard in ('train', 'test-accents')}
    numbers = {shard: [int(name.rsplit('-', 1)[1]) for name in names] for shard, names in told.items()}
    assert numbers['train'] and max(numbers['train']) < TESTED <= min(numbers['test-accents'])
    assert len(told['test-accents']) == 6 and len({row['speaker'] for row in load(tmp_path / 'out', 'test-voice')}) == 3
    drawn = [load(tmp_path / 'out', f'drawn-{kind}') for kind in ('voice', 'accents')]
    assert [len({row['speaker'] for row in rows}) for rows in drawn] == [2, 2]
    assert {row['text'] for rows in drawn for row in rows} <= set(parts(lines)[1])  # texts of the tests
    assert not {row['speaker'] for rows in drawn for row in rows} & told['train']
    assert plan(tmp_path / 'out')['accents, 2 min, noisy'] == ('test-accents', 120, True)
    assert not any('drawn' in name for name in plan(tmp_path / 'out'))
    wanted = ['accents, 2 min, noisy', 'utterances, clean', 'accents, 2 min']  # scored in this order, each once
    assert list(plan(tmp_path / 'out', wanted)) == [*wanted[:2], 'accents, 2 min, clean']


SAID = """
import accents
a, text = accents.accented(), 'the quick brown fox thinks of a very old house'
print(*(len(a.say(text, 'en-us+m1', 50, 160, *n)) for n in ((), (None,), (4,), (4,))), a.variants)
accents.exchanged = lambda accent: [('p', 'b'), ('I', 'E')]
words = ('a pit', None), ('a bet', accents.EXCHANGES), ('a bet', None)
print(*(len(a.say(word, 'en-us+m1', 50, 160, accent)) for word, accent in words))
"""


def test_an_accent_is_heard_and_leaves_no_files(scripts, tmp_path):
    pytest.importorskip('espeakng_loader')
    places = os.pathsep.join([str(ROOT), str(ROOT / 'benchmarks/accuracy'), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-c', SAID]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=places))
    *lengths, folder = run.stdout.splitlines()[0].split()
    pit, exchanged, bet = map(int, run.stdout.splitlines()[1].split())
    assert exchanged == pytest.approx(pit, rel=5e-3) and abs(bet / pit - 1) > 0.02
    plain, same, accented, again = map(int, lengths)  # a voice's roughness is random, by one part in a thousand
    assert same == pytest.approx(plain, rel=5e-3) and again == pytest.approx(accented, rel=5e-3)
    assert abs(accented / plain - 1) > 0.02 and not Path(folder).exists()


def test_no_recording_is_in_a_row_twice(scripts):
    from feed import Batches

    rows = [dict(samples=16000, speaker='a', source='a') for _ in range(12)]
    batches = Batches(rows, [[1]] * 12, 1, 1.0, {}, 60.0, seed=0)
    found = [batches._joined(random.Random(i), 60.0) for i in range(5)]
    assert all(sorted(row) == list(range(12)) for row in found) and len(set(map(tuple, found))) > 1
    assert all(1 <= len(batches._joined(random.Random(i), 4.0)) < 4 for i in range(5))


def test_what_a_model_knows_by_heart_is_scored_by_texts_and_voices(scripts, corpus, monkeypatch, tmp_path):
    import contestants
    import overfit
    from texts import split

    pytest.importorskip('espeakng_loader')
    monkeypatch.setattr(contestants.tokenizer, '__defaults__', (64,))
    train(monkeypatch, corpus, tmp_path, 'LaCT-Conformer')
    lines = [f'the {a} {b} sat on the mat' for a in 'red old big odd sad'.split() for b in 'cat dog hen fox'.split()]
    (tmp_path / 'texts.txt').write_text('\n'.join(lines))
    heard, usual = [], overfit.transcribe
    monkeypatch.setattr(overfit, 'transcribe', lambda model, rows, *a: heard.append(rows) or usual(model, rows, *a))
    options = [str(tmp_path / 'LaCT-Conformer-0.nemo'), '--texts', str(tmp_path / 'texts.txt'), '--seconds', '6']
    monkeypatch.setattr(sys, 'argv', ['overfit.py', *options, '--output', str(tmp_path / 'overfit.json')])
    overfit.main()
    rows = json.loads((tmp_path / 'overfit.json').read_text())['rows']
    assert [(row['texts'], row['held_out_voices']) for row in rows] == [
        ('train', False), ('train', True), ('test', False), ('test', True)
    ]  # fmt: skip
    variants = tuple(voice.split('+')[1] for voice, _, _ in overfit.TEST)
    for row, said in zip(rows, heard):
        assert {split(r['text']) for r in said} == {row['texts']} and len(row['words']) == len(said)
        held_out = [any(f'+{v}-' in r['speaker'] for v in variants) for r in said]
        assert all(held_out) if row['held_out_voices'] else not any(held_out)
    (tmp_path / 'texts.txt').write_text('\n'.join(line for line in lines if split(line) == 'train'))
    with pytest.raises(SystemExit):
        overfit.main()


def test_sessions_whose_utterances_come_again(scripts, corpus, monkeypatch, tmp_path):
    import again
    import contestants

    monkeypatch.setattr(contestants.tokenizer, '__defaults__', (64,))
    train(monkeypatch, corpus, tmp_path, 'LaCT-Conformer')
    monkeypatch.setattr(again, 'UTTERANCES', 2)
    heard, usual = [], again.transcribe
    monkeypatch.setattr(again, 'transcribe', lambda model, rows, *a: heard.append(rows) or usual(model, rows, *a))
    model, output = (str(tmp_path / name) for name in ('LaCT-Conformer-0.nemo', 'again.json'))
    options = [model, '--corpus', str(corpus), '--output', output]
    monkeypatch.setattr(sys, 'argv', ['again.py', *options])
    again.main()
    rows = json.loads((tmp_path / 'again.json').read_text())['rows']
    assert [(row['learning'], row['times']) for row in rows] == [(True, 1), (True, 2), (False, 1), (False, 2)]
    assert len(heard[0]) == len(heard[1]) == 2  # 3 utterances
    for once, twice in zip(heard[0], heard[1]):
        assert twice['text'] == f"{once['text']} {once['text']}" and twice['samples'] > 1.9 * once['samples']
    monkeypatch.setattr(sys, 'argv', ['again.py', *options, '--seconds', '0.1'])
    again.main()
    assert len(heard[4]) == 1


def test_weights_of_sources_change_how_often_they_are_drawn(scripts, corpus):
    from corpus import load
    from feed import Batches

    rows = [row | {'speaker': 'a', 'source': 'a'} for row in load(corpus)[:15]]
    rows += [row | {'speaker': 'b', 'source': 'b'} for row in load(corpus)[15:]]
    tokens = [[int(row['source'] == 'b') + 1] for row in rows]
    batches = Batches(rows, tokens, 40, 0.3, {'b': 50.0}, 10.0, seed=0)
    drawn = torch.cat([batch[2].flatten() for batch in batches])
    assert (drawn == 2).sum() > 10 * (drawn == 1).sum()


def test_prompts_are_distinct_lines_of_all_kinds_and_depend_on_the_seed_alone(scripts):
    from prompts import LONGEST, SHARES, Rows, lines, words

    found, left_out = lines(1000, 1, Rows([]))
    assert left_out == 0 and found == lines(1000, 1, Rows([]))[0] != lines(1000, 2, Rows([]))[0]
    texts = [text for _, text in found]
    assert len(set(texts)) == len(texts) == 1000
    assert all(re.fullmatch("[a-z']+( [a-z']+)*", text) and len(text.split()) <= LONGEST for text in texts)
    kinds = [kind for kind, _ in found]
    assert {kind: kinds.count(kind) / 1000 for kind in kinds} == SHARES and kinds[:200] != sorted(kinds[:200])
    assert set(words()) >= {text for kind, text in found if kind == 'word'}
    with pytest.raises(SystemExit, match='--lines 3000000'):
        lines(3_000_000, 0, Everything())


class Everything:
    def __contains__(self, line):
        return True


def test_every_template_can_be_filled(scripts):
    from prompt_templates import FRAGMENTS, NUMBERS, SENTENCES
    from prompt_words import LISTS
    from prompts import Writer

    for text in (FRAGMENTS, NUMBERS, *SENTENCES.values(), *LISTS.values()):
        assert [text.count(a) for a in '{('] == [text.count(a) for a in '})']
        for template in text.split('|'):
            for seed in range(3):
                assert re.fullmatch("[a-z' ]*", Writer(seed).fill(template)), template


def test_prompts_leave_out_rows_of_the_bundled_dev_and_test_sets(scripts, tmp_path):
    import prompts

    five = 'to hear the menu again'
    planted = [' The  caller, at Extension two', five, 'press star', 'again', 'one two three four five six']
    for split, texts in (('dev', planted[:3]), ('test', planted[3:])):
        (tmp_path / f'{split}.json').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    banned = prompts.bundled(tmp_path)
    for line in ('the caller at extension two', f'press one {five}', 'zero two three four five six'):
        assert line in banned
    for line in ('press star', 'again', 'press star again', 'the caller at extension three', 'three four five six'):
        assert line not in banned

    whole = [text for _, text in prompts.lines(1000, 0, prompts.Rows([]))[0]]
    chosen = next(text for text in whole if len(text.split()) == 4)
    found, left_out = prompts.lines(1000, 0, prompts.Rows([chosen]))
    assert left_out == 1 and chosen not in {text for _, text in found} and len(found) == 1000
    ours = prompts.lines(3000, 0, prompts.bundled())
    rows = [re.sub("[^a-z']", ' ', row['text'].lower()).split() for s in ('dev', 'test') for row in rows_of(s, None)]
    sets = [{tuple(row[i : i + 5]) for i in range(len(row) - 4)} for row in (*rows, *(t.split() for _, t in ours[0]))]
    assert ours[1] > 0 and not set.union(*sets[: len(rows)]) & set.union(*sets[len(rows) :])


def test_numbers_and_forms_of_words_in_prompts(scripts):
    from prompts import cardinal, inflected, ordinal, plural

    assert cardinal(0) == 'zero' and cardinal(90) == 'ninety' and cardinal(1_000_000) == 'one million'
    assert cardinal(2_340_019) == 'two million three hundred forty thousand nineteen'
    assert [ordinal(n) for n in (1, 12, 20, 23)] == ['first', 'twelfth', 'twentieth', 'twenty third']
    assert [plural(word) for word in ('key', 'entry', 'box', 'switch')] == ['keys', 'entries', 'boxes', 'switches']
    assert [inflected(*pair) for pair in (('deny', 'ed'), ('play', 'ed'), ('save', 'ing'), ('skip', 'ing'))] == [
        'denied', 'played', 'saving', 'skipping'
    ]  # fmt: skip


def test_the_letter_a_is_spelled_and_the_article_is_not(scripts):
    from prompts import spelled

    assert spelled('a b a') == 'ay b ay' and spelled('a') == 'ay' and spelled('at ten a m') == 'at ten ay m'
    assert spelled('gate a seven') == 'gate ay seven'
    assert spelled('please enter a new number') == 'please enter a new number'


def test_symbols_are_learned_and_their_errors_given_by_place(scripts, monkeypatch, tmp_path):
    pytest.importorskip('espeakng_loader')
    import symbols

    texts, output = tmp_path / 'texts.txt', tmp_path / 'symbols.json'
    lines = (ROOT / 'data/wordnet/texts.txt').read_text().splitlines()[:80]
    texts.write_text('\n'.join(lines) + '\n')
    monkeypatch.setattr(symbols, 'parts', lambda texts: (texts[:60], texts[60:]))  # all of these are for training
    tiny = '--frames 96 --steps 2 --rows 2 --test-rows 16'.split()
    for name in ('window', 'two memories', 'window'):  # the same again replaces the first
        given = ['symbols.py', name, '--texts', str(texts), '--output', str(output), *tiny]
        monkeypatch.setattr(sys, 'argv', given)
        symbols.main()
    assert symbols.sounds(['The sun'], tmp_path / 'sun.sounds') == [['D', '@', 's', 'V', 'n']]
    two, window = json.loads(output.read_text())
    assert (two['contestant'], window['contestant']) == ('two memories', 'window')
    assert set(window['errors']) == {'accents', 'plain'}
    assert set(two['errors']) == {'accents', 'plain', 'accents, frozen', 'plain, frozen'}
    assert two['parameters'] > window['parameters']
    for places in (*two['errors'].values(), *window['errors'].values()):
        assert len(places) == 3 and all(0 < wrong <= every for wrong, every in places)  # up to frame 32, 64, 96


def test_sessions_of_symbols_keep_one_accent(scripts):
    import symbols

    said = [['p', 'I', 'n'], ['b', 'E', 'd', 'z']]
    names = sorted(set(symbols.PAIRS.replace('|', ' ').split()))
    some = symbols.Sessions(said, names, 400, 0, False)
    some.noise.manual_seed(0)
    x, meant = some.batch(3, plain=0.0)
    assert x.shape == (3, 400, symbols.WIDTH) and meant.shape == (3, 400)
    for row in range(3):
        for sound in set(meant[row].tolist()) - {-1}:
            heard = x[row, meant[row] == sound].mean(0)  # many frames: the noise is gone
            distances = (some.vectors - heard).norm(dim=1)
            assert distances.min() < 0.6 * distances.sort().values[1]  # one sound all session long
    plain, meant = some.batch(1, plain=1.0)
    spoken = meant[0] >= 0
    assert (plain[0, spoken] - some.vectors[meant[0, spoken]]).std() == pytest.approx(symbols.NOISE, rel=0.1)


def test_frames_of_speech_are_said_as_they_were_meant(scripts, monkeypatch, tmp_path):
    pytest.importorskip('espeakng_loader')
    import frames

    lines = (ROOT / 'data/wordnet/texts.txt').read_text().splitlines()[:80]
    monkeypatch.setattr(frames, 'FRAMES', 96)
    x, plain = frames.session(3, False, 1.0, lines[:1])  # without an accent
    y, meant = frames.session(3, False, 0.0, lines[:1])  # the same sentence of the same voice with one
    assert x.shape == y.shape == (96, 4 * frames.MELS) and abs(x - y).max() > 1
    assert len(plain) == len(meant) == 96
    order = [[s for s, before in zip(some, ['', *some]) if s not in (before, '')] for some in (plain, meant)]
    # A sound shorter than a frame may be in one of them only.
    assert len(set(order[0])) > 8 and difflib.SequenceMatcher(None, *order).ratio() > 0.85
    data, output = tmp_path / 'frames.pt', tmp_path / 'frames.json'
    monkeypatch.setattr(frames, 'parts', lambda texts: (texts[:60], texts[60:]))
    monkeypatch.setattr(frames, 'RARE', 0)
    frames.make(data, lines, 4, 16, 1)
    made = torch.load(data)
    assert made['x'].shape == (28, 96, 4 * frames.MELS) and made['y'].max() == len(made['names']) - 1
    assert (made['y'] >= 0).float().mean() > 0.7 and not set(frames.SILENCE) & set(made['names'])
    arguments = ['--data', str(data), '--output', str(output), '--steps', '2', '--rows', '2']
    monkeypatch.setattr(sys, 'argv', ['frames.py', 'early memories', *arguments])
    frames.main()
    (result,) = json.loads(output.read_text())
    assert set(result['errors']) == {'accents', 'plain', 'accents, frozen', 'plain, frozen'}
    places = result['errors']['accents']
    assert len(places) == 3 and sum(every for _, every in places) == (made['y'][4:20] >= 0).sum()


def test_gathering_takes_utterances_as_one_chunk(scripts):
    """Steps so small that rows keep their length: three utterances of 10, 12 and 6 frames are one chunk of 28 of 64."""
    import gathering

    from nemo_lact.ops.fast_weights import FastWeights, lact_swiglu_reference, row_length, zeros_like

    torch.manual_seed(0)
    anchor = FastWeights(*(torch.randn(2, 8, 8, dtype=torch.float64) for _ in range(3)))
    q, k, v = (torch.randn(1, 2, 28, 8, dtype=torch.float64) for _ in range(3))
    eta = 1e-7 * torch.rand(1, 2, 28, 3, 1, dtype=torch.float64)
    weights = FastWeights(*(w[None] for w in anchor))
    lengths, momentum = FastWeights(*(row_length(w) for w in anchor)), zeros_like(weights)
    options = ('bidirectional', False, False, anchor, 1e-9, 5.0)

    def learned(run, weights, at, size=64):
        valid = torch.ones(1, at.stop - at.start, dtype=torch.bool)
        given = (*(x[:, :, at] for x in (q, k, v, eta)), torch.zeros(1, 2, valid.size(1)), valid)
        return run(*given, weights, momentum, lengths, size, *options)[1]

    gather, after = gathering.Gathering(), weights
    for at in (slice(0, 10), slice(10, 22), slice(22, 28)):
        after = learned(gather, after, at)
        gather.before += at.stop - at.start
    whole = learned(lact_swiglu_reference, weights, slice(0, 28))
    for start, ours, other in zip(weights, after, whole):
        assert torch.allclose(ours - start, other - start, rtol=1e-3, atol=1e-12)
    # A full chunk leaves nothing of what was before.
    gather.before = 10
    full = learned(gather, after, slice(0, 28), size=28)
    for start, ours, other in zip(weights, full, learned(lact_swiglu_reference, weights, slice(0, 28), size=28)):
        assert torch.allclose(ours - start, other - start, rtol=1e-3, atol=1e-12)
