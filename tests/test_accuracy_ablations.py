"""Ablations of benchmarks/accuracy: of equal size, trainable, compiled, scored in their ways."""

import json
import math
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

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
SMALLEST = dict(n_layers=2, d_model=32, subsampling_conv_channels=8, att_context_size=[4, 4])
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


def built(name, corpus, folder, **small):
    from contestants import config, tokenizer
    from corpus import load
    from grafts import ALL

    subwords = tokenizer([row['text'] for row in load(corpus)], folder / 'subwords', 64)
    recipe = ALL[name]
    return recipe.model(config(recipe, recipe.encoder | small, subwords, 1e-3, 10)).eval()


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
    assert set(report['passes']) == ({'causal'} if name in ('both modes', 'two windows') else set())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['chunk jitter', 'both modes', 'frozen at times'])
def test_what_changes_from_step_to_step_is_compiled_and_learns_the_same(corpus, monkeypatch, tmp_path, name):
    monkeypatch.setattr('nemo_lact.modules.compiled.BACKEND', 'aot_eager')  # graphs without C++
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = ('--steps', '3', '--lr', '1e-3')
    losses = [
        [row['loss'] for row in train(monkeypatch, corpus, tmp_path / str(i), name, *more, *options)['log']]
        for i, more in enumerate(((), ('compile=true',)))
    ]
    graphs = torch._dynamo.utils.counters['stats']['unique_graphs']
    assert 0 < graphs < 60  # the reference memory breaks a layer in several
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.slow
def test_averaged_weights_are_scored_and_lie_between_the_first_and_the_last(corpus, monkeypatch, tmp_path):
    import averaging

    found = {}
    give = averaging.Average.give

    def kept(self, model):
        found['last'] = model.encoder.norm_out.weight.detach().clone()
        give(self, model)
        found['average'] = model.encoder.norm_out.weight.detach().clone()

    monkeypatch.setattr(averaging.Average, 'give', kept)
    report = train(monkeypatch, corpus, tmp_path, BASE, '--ema', '--lr', '1e-2', '--steps', '3')
    assert set(report['passes']) == {'averaged weights'}
    assert set(report['passes']['averaged weights']) == {'utterances, clean'}  # not frozen again
    first = torch.ones_like(found['last'])  # a norm's
    moved, average = found['last'] - first, found['average'] - first
    assert moved.abs().max() > 1e-3 and average.norm() < moved.norm() and (average * moved).sum() > 0


def test_the_average_forgets_the_first_weights_of_a_short_run():
    from averaging import Average

    model = SimpleNamespace(encoder=torch.nn.Linear(1, 1), decoder=torch.nn.BatchNorm1d(1))
    average = Average(0.999)
    with torch.no_grad():
        model.encoder.weight.fill_(-5)
        average.on_train_start(None, model)
        for n in range(100):
            model.encoder.weight.fill_(0.0 if n < 10 else 1.0)
            # As NeMo's relative positions: a table that grows with the longest row.
            model.decoder.register_buffer('table', torch.zeros(n + 1))
            average.on_train_batch_end(None, model, None, None, n)
        model.encoder.weight.fill_(-5)
        average.give(model)
    assert 0.9 < model.encoder.weight.item() < 1 and len(model.decoder.table) == 100


def test_unknown_test_sets_are_refused_before_the_training(corpus, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(monkeypatch, corpus, tmp_path, BASE, '--sets', 'utterances', 'kokoro')
    assert "no test set begins with 'kokoro'" in capsys.readouterr().err


def test_a_step_of_the_same_size_for_any_evidence():
    from ablation_contestants import SameStepMemory

    from nemo_lact.modules.config import LaCTEncoderConfig
    from nemo_lact.modules.fast_weights import FastWeightMemory

    config = LaCTEncoderConfig.from_kwargs(d_model=16, n_heads=2, num_lact_heads=2, lact_chunk_size=8, use_muon=False)
    memory = FastWeightMemory(config)
    q, k, v, x = (torch.randn(2, 12, 16) for _ in range(4))
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 3:] = False  # the rows' chunks hold 8 and 4, 3 and 0 frames
    seen = []
    usual = FastWeightMemory._to_learn
    memory.__class__ = SameStepMemory
    memory._to_learn = lambda *a: seen.append(SameStepMemory._to_learn(memory, *a)[2]) or usual(memory, *a)
    memory(x, q, k, v, valid, None, None, True, None, False)
    share = (seen[0] / usual(memory, x, k, v, None, None)[2])[:, 0, :, 0, 0]
    assert torch.allclose(share[0], torch.tensor([1.0] * 8 + [2.0] * 4))
    assert torch.allclose(share[1, :3], torch.full((3,), 8 / 3))
    assert memory.more is None


def test_a_second_read_is_added_and_begins_closed():
    from ablation_contestants import read_twice

    from nemo_lact.modules.config import LaCTEncoderConfig
    from nemo_lact.modules.fast_weights import FastWeightMemory

    config = LaCTEncoderConfig.from_kwargs(d_model=16, n_heads=2, num_lact_heads=2, lact_chunk_size=8, use_muon=False)
    memory = FastWeightMemory(config)
    q, k, v, x = (torch.randn(2, 12, 16) for _ in range(4))
    valid = torch.ones(2, 12, dtype=torch.bool)

    def read(adaptation):
        return memory(x, q, k, v, valid, None, None, adaptation, None, False)[0]

    frozen, learned = read(False), read(True)
    read_twice(memory)
    assert torch.equal(read(False), frozen) and torch.equal(read(True), frozen)
    read(True).square().sum().backward()
    assert memory.gate_proj.learned.weight.grad.abs().sum() > 0
    memory.gate_proj.learned.load_state_dict(memory.gate_proj.initial.state_dict())
    assert torch.allclose(read(True), frozen + learned) and torch.equal(read(False), frozen)


@pytest.fixture
def conformers(corpus, tmp_path):
    """'FastConformer local' and 'Conformer with memory' of the same weights, small, for evaluation."""
    names = 'FastConformer local', 'Conformer with memory'
    models = [built(name, corpus, tmp_path, **SMALLEST) for name in names]
    renamed = {k.replace('linear_out.', 'linear_out.linear.'): v for k, v in models[0].state_dict().items()}
    missing, unexpected = models[1].load_state_dict(renamed, strict=False)
    assert not unexpected and all('.linear_out.memory.' in name for name in missing) and missing
    return models


def test_a_conformer_with_memory_begins_as_the_conformer_and_learns_of_valid_frames(conformers):
    plain, model = (m.encoder for m in conformers)
    torch.manual_seed(0)
    features, lengths = torch.randn(2, 80, 2400), torch.tensor([2400, 1600])  # 300 and 200 frames: chunks of 128

    def heard(encoder, features=features):
        with torch.no_grad():
            out, frames = encoder(audio_signal=features, length=lengths)
        return torch.cat([row[:, :n].T for row, n in zip(out, frames)])

    base = heard(plain)
    assert torch.allclose(heard(model), base, atol=1e-5)
    for layer in model.layers:
        gates = layer.self_attn.linear_out.memory.gate_proj
        for gate in (gates.initial, gates.learned):
            torch.nn.init.constant_(gate.bias, 1.0)
    learning = heard(model)
    model.adaptation = False
    frozen = heard(model)
    assert (frozen - base).abs().max() > 1e-2 and (learning - frozen).abs().max() > 1e-3
    model.adaptation = True
    louder = features.clone()
    louder[1, :, 1600:] = 7.0  # padding
    assert torch.allclose(heard(model, louder), learning, atol=1e-4)


@pytest.fixture
def relative(corpus, tmp_path):
    """'two reads, relative positions', small, for evaluation."""
    return built('two reads, relative positions', corpus, tmp_path, **SMALLEST).encoder


def test_attention_of_nemo_in_blocks_of_lact_hears_its_window_and_no_padding(relative):
    mixer = relative.layers[0].mixer
    torch.manual_seed(0)
    x, valid = torch.randn(2, 300, 32), torch.ones(2, 300, dtype=torch.bool)
    valid[1, 200:] = False

    def mixed(x, adaptation=False):
        with torch.no_grad():
            return mixer(x, valid, None, None, (4, 4), adaptation, None, False)[0]

    out, changed = mixed(x), x.clone()
    changed[0, 100], changed[1, 200:] = 1.0, 7.0
    moved = (mixed(changed) - out).abs().amax(-1) > 1e-5
    assert moved[0].nonzero().flatten().tolist() == list(range(96, 105))
    assert not moved[1, :200].any()
    shifted = mixed(x.roll(1, dims=1))
    assert torch.allclose(shifted[0, 20:280], out[0, 19:279], atol=1e-5)  # positions are relative
    for parameter in mixer.memory.gate_proj.learned.parameters():
        torch.nn.init.ones_(parameter)
    assert (mixed(x, adaptation=True) - out)[0].abs().max() > 1e-3


@pytest.mark.slow
def test_two_reads_with_relative_positions_has_as_many_parameters_trains_and_is_scored(
    corpus, relative, monkeypatch, tmp_path
):
    from conformer_memory import ALL, NemoAttention

    encoder = LaCTEncoder(**{k: v for k, v in ALL['two reads'].encoder.items() if k != '_target_'})
    plain = sum(p.numel() for p in encoder.parameters())
    for layer in encoder.layers:
        layer.mixer = NemoAttention(layer.mixer)
    assert 1 < sum(p.numel() for p in encoder.parameters()) / plain <= 1.05
    report = train(monkeypatch, corpus, tmp_path, 'two reads, relative positions')
    assert report['steps'] == 2 and all(math.isfinite(row['loss']) for row in report['log'])
    assert set(report['scores']) == {'utterances, clean', 'utterances, clean, frozen'}


@pytest.mark.slow
def test_a_conformer_with_memory_has_as_many_parameters_trains_and_is_scored(corpus, monkeypatch, tmp_path):
    from conformer_memory import ALL, remember
    from nemo.collections.asr.modules import ConformerEncoder

    options = {k: v for k, v in ALL['FastConformer local'].encoder.items() if k != '_target_'}
    plain, encoder = ConformerEncoder(**options), ConformerEncoder(**options)
    remember(encoder)
    more = sum(p.numel() for p in encoder.parameters()) / sum(p.numel() for p in plain.parameters())
    assert 1 < more <= 1.05
    report = train(monkeypatch, corpus, tmp_path, 'Conformer with memory')
    assert report['steps'] == 2 and all(math.isfinite(row['loss']) for row in report['log'])
    assert set(report['scores']) == {'utterances, clean', 'utterances, clean, frozen'}


def test_a_memory_may_forget_in_use_only(corpus, monkeypatch, tmp_path):
    from contestants import LACT_CONFORMER
    from nemo.collections.asr.models import EncDecCTCModelBPE

    from nemo_lact.modules import fast_weights

    seen, usual = [], fast_weights.lact_swiglu

    def learn(*args):
        *_, retention, _ = args
        seen.append((torch.is_grad_enabled(), retention))
        return usual(*args)

    monkeypatch.setattr(fast_weights, 'lact_swiglu', learn)
    train(monkeypatch, corpus, tmp_path, 'norm and biases', '--save')
    in_use = LACT_CONFORMER['lact_retention']
    assert in_use < 1 and set(seen) == {(True, 1.0), (False, in_use)}
    (path,) = tmp_path.rglob('norm_and_biases-0.nemo')
    assert EncDecCTCModelBPE.restore_from(str(path), map_location='cpu').encoder.config.lact_retention == in_use


def test_two_views_agree_with_themselves_and_pull_on_each_other():
    from ablation_contestants import disagreement

    logits = torch.randn(2, 5, 4, requires_grad=True)
    same = torch.cat([logits[:1], logits[:1]]).log_softmax(-1)
    assert disagreement(same, torch.tensor([5, 5])).abs() < 1e-6
    p, q = logits.log_softmax(-1)
    expected = 0.5 * ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1))[:3].sum()  # 3 frames of 5 are valid
    found = disagreement(torch.stack([p, q]), torch.tensor([3, 3]))
    assert torch.allclose(found, expected)
    (gradient,) = torch.autograd.grad(found, logits)
    # Of KL(fixed p || q) by the logits of q: q - p, and by those of p nothing.
    assert torch.allclose(gradient[1, :3], 0.5 * (q.exp() - p.exp())[:3], atol=1e-6)
    assert torch.allclose(gradient[0], -gradient[1], atol=1e-6) and gradient[:, 3:].abs().max() == 0


@pytest.mark.slow
def test_frozen_at_times_learns_at_times_and_when_it_is_scored(corpus, monkeypatch, tmp_path):
    import ablation_contestants

    from nemo_lact.modules import LaCTEncoder

    seen, forward = [], LaCTEncoder.forward

    def noted(self, *args, **kwargs):
        seen.append((self.training, self.adaptation))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LaCTEncoder, 'forward', noted)
    monkeypatch.setattr(ablation_contestants, 'FROZEN_STEPS', 0.5)
    report = train(monkeypatch, corpus, tmp_path, 'frozen at times', '--steps', '6')
    assert {learns for training, learns in seen if training} == {True, False}
    assert [learns for training, learns in seen if not training][0]  # then the pass that is frozen
    assert all(math.isfinite(row['loss']) for row in report['log'])


def test_both_modes_switch_window_and_order(corpus, monkeypatch, tmp_path):
    import ablation_contestants

    seen = []
    set_mode = ablation_contestants.BothModes._set

    def noted(self, causal):
        set_mode(self, causal)
        config = self.encoder.config
        seen.append((causal, config.lact_mode, self.encoder.att_context_size, not config.not_streaming()))

    monkeypatch.setattr(ablation_contestants.BothModes, '_set', noted)
    train(monkeypatch, corpus, tmp_path, 'both modes', '--steps', '4')
    assert seen[-2:] == [(False, 'bidirectional', [64, 64], False), (True, 'causal', [64, 0], True)]  # while scored
    assert {entry[0] for entry in seen[:4]} == {True, False} and all(entry in seen[-2:] for entry in seen)


CONDITIONED = ['FastConformer local, self-conditioned', 'no memory, self-conditioned', 'two reads, self-conditioned']
LATE = 'late memories, self-conditioned'
OPEN, EARLY, FEW, GROWN, SHARED = (
    f'{kind} memories, self-conditioned' for kind in ('open', 'early', 'few', 'grown', 'shared')
)
ONE = 'one memory, self-conditioned'
NEW = [*CONDITIONED, 'no memory', 'two memories, self-conditioned', 'late memories', LATE, OPEN, EARLY, FEW, GROWN, ONE]


@pytest.mark.parametrize('name', CONDITIONED)
def test_the_upper_half_is_told_what_the_lower_half_would_say(corpus, tmp_path, name):
    model = built(name, corpus, tmp_path, **SMALLEST)
    encoder, conv = model.encoder, model.decoder.decoder_layers[0]
    torch.manual_seed(0)
    signal, length = torch.randn(1, 80, 400), torch.tensor([400])
    halves = []
    encoder.layers[0].register_forward_hook(lambda layer, inputs, out: halves.append(out))

    def heard():
        return encoder(audio_signal=signal, length=length)[0]

    plain = heard()
    (hook,) = (hooks := encoder.layers[1]._forward_pre_hooks).values()
    kept = dict(hooks)
    hooks.clear()
    assert torch.equal(heard(), plain)  # it begins as if it were not told
    hooks.update(kept)
    torch.nn.init.normal_(encoder.condition.weight)
    told = heard()
    assert (told - plain).abs().max() > 1e-2
    half = halves[0][0] if isinstance(halves[0], tuple) else halves[0]
    normed = encoder.head(half) if hasattr(encoder, 'head') else half
    said = (normed @ conv.weight[..., 0].T + conv.bias).softmax(-1)  # [1, T, V + 1]
    inputs, named = hook(encoder.layers[1], (half,), {}) if hasattr(encoder, 'head') else hook(None, (), {'x': half})
    got = inputs[0] if inputs else named['x']
    assert torch.allclose(got, half + said @ encoder.condition.weight.T, atol=1e-5)
    told.square().sum().backward()
    assert encoder.condition.weight.grad.abs().sum() > 0 and conv.weight.grad.abs().sum() > 0


def test_layers_without_a_memory_and_two_with_projections_of_their_own(corpus, tmp_path):
    from nemo_lact.modules.fast_weights import FastWeightMemory

    small = SMALLEST | dict(n_layers=8)
    without = built('no memory', corpus, tmp_path, **small).encoder
    assert not any(isinstance(m, FastWeightMemory) for m in without.modules()) and not without.adaptation
    encoder = built('two memories, self-conditioned', corpus, tmp_path, **small).encoder
    assert [i for i, layer in enumerate(encoder.layers) if layer.mixer.memory is not None] == [2, 5]
    mixer = encoder.layers[2].mixer
    torch.manual_seed(0)
    x, valid = torch.randn(1, 300, 32), torch.ones(1, 300, dtype=torch.bool)
    cos, sin = torch.ones(300, 4), torch.zeros(300, 4)

    def mixed(adaptation):
        with torch.no_grad():
            return mixer(x, valid, cos, sin, (4, 4), adaptation, None, False)[0]

    for parameter in mixer.memory.gate_proj.learned.parameters():
        torch.nn.init.ones_(parameter)
    before, frozen = mixed(True), mixed(False)
    assert (before - frozen).abs().max() > 1e-4
    torch.nn.init.zeros_(mixer.memory.own.weight)
    assert (mixed(True) - before).abs().max() > 1e-4 and (mixed(False) - frozen).abs().max() > 1e-4


def test_late_memories_come_after_the_half_and_begin_open(corpus, tmp_path):
    encoder = built(LATE, corpus, tmp_path, **SMALLEST | dict(n_layers=8)).encoder
    assert [i for i, layer in enumerate(encoder.layers) if layer.mixer.memory is not None] == [4, 5]
    memory = encoder.layers[4].mixer.memory
    torch.manual_seed(0)
    x, valid, tables = torch.randn(1, 300, 32), torch.ones(1, 300, dtype=torch.bool), torch.ones(300, 4)

    def reads(adaptation):
        with torch.no_grad():
            return memory(x, None, None, None, valid, tables, tables, adaptation, None, False)[0]

    learning, frozen = reads(True), reads(False)  # its own projections are all that it takes
    assert learning.abs().max() > 1e-2 and (learning - frozen).abs().max() > 1e-4
    torch.nn.init.zeros_(memory.own_out.weight)
    assert not reads(True).any()


@pytest.mark.parametrize(
    'name, layers', [(OPEN, range(8)), (EARLY, range(4)), (FEW, (2, 3)), (GROWN, (2, 3)), (ONE, (2,))]
)
def test_open_memories_are_in_the_layers_they_are_meant_for(corpus, tmp_path, name, layers):
    from conditioned import OpenMemory

    encoder = built(name, corpus, tmp_path, **SMALLEST | dict(n_layers=8)).encoder
    assert [i for i, layer in enumerate(encoder.layers) if isinstance(layer.mixer.memory, OpenMemory)] == list(layers)
    assert encoder.adaptation and encoder.config.lact_retention == 0.9


def test_grown_memories_sleep_for_half_of_the_training(corpus, monkeypatch, tmp_path):
    from grafts import GrownMemories

    states = []
    wake = GrownMemories._wake

    def seen(self, awake):
        states.append((awake, self.sleepers[0].memory.own_out.weight.abs().sum().item()))
        wake(self, awake)

    monkeypatch.setattr(GrownMemories, '_wake', seen)
    train(monkeypatch, corpus, tmp_path, GROWN, '--steps', '4')
    assert [awake for awake, _ in states] == [False, False, True, True, True]  # the last: scored
    assert [weight == 0 for _, weight in states] == [True, True, True, False, False]


@pytest.mark.parametrize(
    'name, layers',
    [('starter', {}), ('starter, open memories', range(8)), ('starter, open memories above', range(4, 8)),
     ('starter, memories alone above', (5, 7)), ('starter, no memories above', {})],
)  # fmt: skip
def test_what_is_not_new_comes_from_the_starter(corpus, monkeypatch, tmp_path, name, layers):
    import grafts
    from conditioned import OpenMemory
    from contestants import config

    from nemo_lact.info import config_and_weights
    from nemo_lact.starter import FILE

    folder = tmp_path / 'tokenizer'
    monkeypatch.setattr(sys, 'argv', ['grafts.py', str(folder)])
    grafts.main()
    recipe, weights = grafts.ALL[name], config_and_weights(FILE)[1]
    model = recipe.model(config(recipe, recipe.encoder, folder, 1e-3, 10))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    new = [i for i, layer in enumerate(model.encoder.layers) if isinstance(layer.mixer.memory, OpenMemory)]
    assert new == list(layers)
    for key, tensor in model.state_dict().items():
        fresh = key.startswith('encoder.condition') or any(f'layers.{i}.mixer.memory' in key for i in new)
        assert torch.equal(tensor, before[key] if fresh else weights[key].to(tensor)), key


def test_one_layer_can_learn_alone(corpus, tmp_path):
    import which_layers

    model = built(EARLY, corpus, tmp_path, **SMALLEST | dict(n_layers=4))
    memories = [layer.mixer.memory for layer in model.encoder.layers[:2]]
    torch.manual_seed(0)
    given = dict(audio_signal=torch.randn(1, 80, 800), length=torch.tensor([800]))

    def heard(adaptation=True):
        model.encoder.adaptation = adaptation
        with torch.inference_mode():
            return model.encoder(**given)[0]

    learning, frozen, learns = heard(), heard(False), {0: True, 1: True}
    for layer, memory in enumerate(memories):
        which_layers.switch(memory, learns, layer)
    assert torch.equal(heard(), learning)
    learns[1] = False
    one = heard()
    assert (one - learning).abs().max() > 1e-6 < (one - frozen).abs().max()
    learns[0] = False
    assert torch.equal(heard(), frozen)
    for memory in memories:
        del memory.forward
    names = ['all', 'none', 'only 0', 'only 1', 'all but 0', 'all but 1']
    results = which_layers.measure(model, corpus, ['utterances, clean'])
    assert list(results) == names and all(0 < wers['utterances, clean'] for wers in results.values())
    assert torch.equal(heard(), learning)


def test_they_have_as_many_parameters_as_fastconformer_local(corpus, tmp_path):
    more = [f'shared memories in {some} layers, long chunks' for some in ('four', 'all')]
    base, *others = (
        sum(p.numel() for p in built(name, corpus, tmp_path).parameters())
        for name in ('FastConformer local', *NEW, 'shared memories', SHARED, *more)
    )
    assert all(abs(count / base - 1) <= 0.05 for count in others), [count / base for count in others]


@pytest.mark.slow
@pytest.mark.parametrize('name', NEW)
def test_they_train_and_are_scored(corpus, monkeypatch, tmp_path, name):
    report = train(monkeypatch, corpus, tmp_path, name)
    assert report['steps'] == 2 and all(math.isfinite(row['loss']) for row in report['log'])
    remembers = not name.startswith(('FastConformer', 'no memory'))
    assert set(report['scores']) == {'utterances, clean'} | ({'utterances, clean, frozen'} if remembers else set())


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, layers',
    [
        ('shared memories', [2, 3]), (SHARED, [2, 3]), ('shared memories in four layers, long chunks', [1, 2, 3, 4]),
        ('shared memories in all layers, long chunks', range(8)),
    ],
)
def test_shared_memories_are_the_package_s(corpus, monkeypatch, tmp_path, name, layers):
    from nemo_lact.modules.fast_weights import FastWeightMemory

    encoder = built(name, corpus, tmp_path / 'built', **SMALLEST | dict(n_layers=8)).encoder
    kinds = {index: type(layer.mixer.memory) for index, layer in enumerate(encoder.layers) if layer.mixer.memory}
    assert kinds == dict.fromkeys(layers, FastWeightMemory)
    assert encoder.config.lact_chunk_size == (512 if 'long' in name else 128)
    report = train(monkeypatch, corpus, tmp_path, name, *SMALL, 'n_layers=8')
    assert report['steps'] == 2 and all(math.isfinite(row['loss']) for row in report['log'])
    assert set(report['scores']) == {'utterances, clean', 'utterances, clean, frozen'}


@pytest.mark.slow
def test_what_learning_costs_is_measured_with_each_contestant_s_own_memory(monkeypatch, tmp_path, capsys):
    import cost

    output, few, shared = tmp_path / 'cost.json', 'few memories', 'shared memories'

    def measured(*names):
        tiny = ['--shapes', 'utterances', '--rows', '1', '--times', '3', *SMALL, 'n_layers=8']
        monkeypatch.setattr(sys, 'argv', ['cost.py', *names, '--output', str(output), *tiny])
        cost.main()

    measured(few, shared)
    report = json.loads(output.read_text())
    assert report['ran'] == {few: 'reference', shared: 'auto'}  # few's own memories know no kernels
    for name in (few, shared):
        found = report['costs'][name]['utterances']
        assert 0 < found['lowest'] <= found['highest'] and found['rows'] == 1 and found['ratio'] > 0
    with pytest.raises(SystemExit):
        measured('no memory')
    assert "'no memory' has no memory that learns" in capsys.readouterr().err


@pytest.mark.slow
def test_a_contestant_is_scored_again_from_its_file(corpus, monkeypatch, tmp_path):
    name, (first, again) = 'two memories, self-conditioned', (tmp_path / 'first', tmp_path / 'again')
    report = train(monkeypatch, corpus, first, name, '--save')
    (path,) = first.glob('*.nemo')
    with pytest.raises(SystemExit):
        train(monkeypatch, corpus, again, name, '--steps', '0')
    loaded = {}
    import score

    usual = score._greedy

    def greedy(model, *args):
        loaded.update(model.state_dict())
        return usual(model, *args)

    monkeypatch.setattr(score, '_greedy', greedy)
    same = train(monkeypatch, corpus, again, name, '--steps', '0', '--init', str(path))
    from nemo_lact.info import config_and_weights

    assert same['steps'] == 0 and same['log'] == [] and same['scores'] == report['scores']
    kept = config_and_weights(path)[1]
    assert loaded.keys() == kept.keys() and all(torch.equal(loaded[k].to(kept[k].dtype), kept[k]) for k in kept)


@pytest.mark.slow
def test_weights_are_told_about_a_voice(corpus, monkeypatch, tmp_path):
    import told
    from corpus import load

    name = 'two lasting memories, self-conditioned'
    train(monkeypatch, corpus, tmp_path, name, '--save', '--kinds', 'short=1')
    (path,) = tmp_path.glob('*.nemo')
    monkeypatch.setattr(told, 'RATES', {'all': 1e-2, 'memories': 1e-2})
    options = ['--contestant', name, '--corpus', str(corpus), '--shards', 'test-voice0', '--output']
    options += [str(tmp_path / 'told.json'), '--seconds', '2', '--steps', '1']
    monkeypatch.setattr(sys, 'argv', ['told.py', str(path), *options])
    told.main()
    rows = json.loads((tmp_path / 'told.json').read_text())['rows']
    ways = [(row['weights'], row['texts']) for row in rows]
    assert ways == [('none', ''), ('all', 'true'), ('memories', 'true'), ('all', 'own'), ('memories', 'own')]
    assert len({row['words'][0][1] for row in rows}) == 1 and rows[0]['words'][0][1] > 0

    model = told.opened(path, name)
    before = {n: value.clone() for n, value in model.state_dict().items()}
    told.tell(model, load(corpus, 'train-voice')[:4], 'memories', 1)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    weights = {f'encoder.layers.{layer}.mixer.memory.w{i}.weight' for layer, i in product(range(2), range(3))}
    assert moved and moved <= weights
    told.tell(model, load(corpus, 'train-voice')[:4], 'all', 1)
    assert any(not torch.equal(value, before[n]) for n, value in model.state_dict().items() if n not in weights)


def test_without_memories_no_fast_kernel_is_asked_for(corpus, tmp_path):
    from nemo_lact.modules.wave_step import fast_memory_problem

    model = built('no memory', corpus, tmp_path, **SMALLEST)
    model.ways()['']()
    encoder = model.encoder
    problem = fast_memory_problem(encoder.config, encoder.layers[0].mixer.memory, torch.bfloat16, 'cuda')
    assert problem == 'the reference memory is asked for'
