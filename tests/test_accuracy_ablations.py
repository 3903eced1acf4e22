"""Ablations of benchmarks/accuracy: of equal size, trainable, scored in their ways, run in a row, and their tables."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from nemo_lact import ops
from nemo_lact.modules import LaCTEncoder

ROOT = Path(__file__).parents[1]
DATA = ROOT / 'data/asterisk_en'
pytestmark = [
    pytest.mark.skipif(not (ROOT / 'benchmarks').is_dir(), reason='needs a checkout'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='a tiny size for a CPU'),
]
if (ROOT / 'benchmarks').is_dir():
    sys.path.insert(0, str(ROOT / 'benchmarks/accuracy'))
    from ablation_contestants import ABLATIONS, BASE, RECIPES
    from contestants import CONTESTANTS

    sys.path.remove(str(ROOT / 'benchmarks/accuracy'))
else:
    ABLATIONS = {}
TINY = ['--steps', '2', '--minutes', '0.2', '--workers', '0', '--score-seconds', '4', '--sets', 'utterances, clean']
SMALL = ['--encoder', 'n_layers=2', 'd_model=32', 'subsampling_conv_channels=8']


@pytest.fixture(scope='module', autouse=True)
def scripts():
    sys.path.insert(0, str(ROOT / 'benchmarks/accuracy'))
    yield
    sys.path.remove(str(ROOT / 'benchmarks/accuracy'))


@pytest.fixture(autouse=True)
def implementation():
    yield
    ops.use_implementation('auto')  # an ablation may have chosen another


@pytest.fixture(scope='module')
def corpus(scripts, tmp_path_factory):
    """30 bundled prompts to learn and 3 of another set to score."""
    from corpus import copy

    folder = tmp_path_factory.mktemp('corpus')
    for name, split, count in (('train-voice', 'train', 30), ('test-voice0', 'dev', 3)):
        lines = (DATA / f'{split}.json').read_text().splitlines()[:count]
        rows = [row | {'audio_filepath': str(DATA / row['audio_filepath'])} for row in map(json.loads, lines)]
        manifest = folder / f'{name}.json'
        manifest.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        copy(folder, name, name, manifest)
    return folder


def train(monkeypatch, corpus, out, contestant, *more) -> dict:
    import contestants
    import train

    # 30 prompts have too few different words for 256 subwords
    monkeypatch.setattr(contestants.tokenizer, '__defaults__', (64,))
    arguments = [contestant, '--corpus', str(corpus), '--output', str(out), *TINY, *SMALL, *more]
    monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
    train.main()
    (path,) = out.glob('*.json')
    return json.loads(path.read_text())


def parameters(name: str) -> int:
    options = {key: value for key, value in RECIPES[name].encoder.items() if key != '_target_'}
    return sum(p.numel() for p in LaCTEncoder(**options).parameters())


def test_ablations_have_as_many_parameters_as_their_base():
    assert len(ABLATIONS) >= 20 and all(r.base == BASE for r in ABLATIONS.values())
    base = parameters(BASE)
    off = {n: parameters(n) / base - 1 for n, r in RECIPES.items() if r.base}
    assert all(abs(share) <= 0.05 for share in off.values()), off


def test_every_ablation_differs_from_its_base_in_something():
    recipes = [*ABLATIONS.values(), CONTESTANTS[BASE]]
    assert all(a != b for i, a in enumerate(recipes) for b in recipes[:i])
    assert all(sum(r.kinds.values()) == pytest.approx(1.0) for r in recipes)


@pytest.mark.slow
@pytest.mark.parametrize('name', ABLATIONS)
def test_an_ablation_trains_and_is_scored(corpus, monkeypatch, tmp_path, name):
    report = train(monkeypatch, corpus, tmp_path, name)
    assert report['steps'] == 2 and report['base'] == BASE and len(report['log']) == 2
    assert all(math.isfinite(row['loss']) for row in report['log'])
    learning = {'utterances, clean', 'utterances, clean, frozen'}
    expected = {'utterances, clean'} if RECIPES[name].encoder.get('adaptation') is False else learning
    assert set(report['scores']) == expected
    assert set(report['passes']) == ({'causal'} if name == 'both modes' else set())
