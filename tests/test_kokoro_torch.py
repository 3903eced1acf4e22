"""benchmarks/accuracy/kokoro_torch.py and onnx_torch.py on graphs made by hand: products, LSTM, shapes, resampling."""

import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / 'benchmarks').is_dir(), reason='needs a checkout')


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks/accuracy'))


def graph(nodes, outputs=('y',), **tensors):
    from onnx_torch import Graph

    return Graph(dict(nodes=nodes, tensors=tensors, outputs=list(outputs)))


def quantised(op, weight, attributes, scale, bias=None):
    """Nodes as quantisers write them: x to y through integers, a bias rounded to the scale."""
    nodes = [
        ('DynamicQuantizeLinear', ['x'], ['q', 's', 'z'], {}),
        (op, ['q', 'w', 'z', 'wz'], ['p'], attributes),
        ('Mul', ['s', 'scale'], ['factor'], {}),
    ]
    if bias is not None:
        nodes += [
            ('Div', ['bias', 'factor'], ['b0'], {}),
            ('Floor', ['b0'], ['b1'], {}),
            ('Cast', ['b1'], ['b2'], dict(to=6)),
            ('Reshape', ['b2', 'shape'], ['b3'], {}),
            ('Add', ['p', 'b3'], ['p1'], {}),
        ]
    last = 'p' if bias is None else 'p1'
    return [*nodes, ('Cast', [last], ['p2'], dict(to=1)), ('Mul', ['p2', 'factor'], ['y'], {})]


def test_an_integer_product_is_the_product_with_dequantised_weights():
    torch.manual_seed(0)
    x, weight, zero = torch.randn(2, 5, 30), torch.randint(0, 256, (30, 25), dtype=torch.uint8), torch.arange(100, 125)
    scale = torch.rand(25) + 0.5
    nodes = quantised('MatMulInteger', weight, {}, scale)
    g = graph(nodes, w=weight, wz=zero.to(torch.uint8), scale=scale)
    expected = x @ ((weight.float() - zero) * scale)
    assert torch.allclose(g(x=x)[0], expected, rtol=1e-4, atol=1e-2)
    assert g.ops == ['Linear']
    # the same without constant weights, which is not fused
    loose = graph([('MatMulInteger', ['x', 'w', '', 'wz'], ['y'], {})])
    assert torch.allclose(loose(x=x, w=weight, wz=zero.float())[0], x @ (weight.float() - zero), rtol=1e-4, atol=1e-2)


def test_an_integer_convolution_with_a_rounded_bias_is_exact():
    torch.manual_seed(0)
    weight, bias = torch.randint(0, 256, (24, 8, 3), dtype=torch.uint8), torch.randn(24) / 100
    x, scale = torch.randn(1, 8, 50), torch.tensor(0.02)
    attributes = dict(pads=[2, 2], dilations=[2], strides=[1], group=1)
    nodes = quantised('ConvInteger', weight, attributes, scale, bias)
    shape = torch.tensor([1, -1, 1])
    g = graph(nodes, w=weight, wz=torch.tensor(97, dtype=torch.uint8), scale=scale, bias=bias, shape=shape)
    expected = torch.nn.functional.conv1d(x, (weight.float() - 97) * scale, bias, padding=2, dilation=2)
    assert torch.allclose(g(x=x)[0], expected, atol=1e-4)
    assert g.ops == ['Conv']


@pytest.mark.parametrize('quantise', [False, True])
def test_gates_and_directions_of_an_lstm(quantise):
    torch.manual_seed(0)
    lstm, x, hidden = torch.nn.LSTM(6, 25, bidirectional=True), torch.randn(9, 1, 6), 25

    def onnx(kind):
        def order(w):
            i, f, c, o = w.detach().split(hidden)
            return torch.cat([i, o, f, c])

        return torch.stack([order(getattr(lstm, f'{kind}_l0{end}')) for end in ('', '_reverse')])

    w, r = onnx('weight_ih'), onnx('weight_hh')
    bias = torch.cat([onnx('bias_ih'), onnx('bias_hh')], 1)
    tensors, names = dict(b=bias, first=torch.zeros(2, 1, hidden)), ['x', 'w', 'r', 'b', '', 'first', 'first', '']
    if quantise:
        scales = [torch.tensor([0.004, 0.005]), torch.tensor([0.003, 0.002])]
        zeros = [torch.tensor([3, -2], dtype=torch.int8)] * 2
        for name, v, scale, zero in zip('wr', (w, r), scales, zeros, strict=True):
            q = (v.mT / scale.view(2, 1, 1) + zero.view(2, 1, 1)).round().clamp(-128, 127).to(torch.int8)
            tensors |= {name: q, f'{name}s': scale, f'{name}z': zero}
        names += ['ws', 'wz', 'rs', 'rz']
    else:
        tensors |= dict(w=w, r=r)
    kind = 'DynamicQuantizeLSTM' if quantise else 'LSTM'
    g = graph([(kind, names, ['y', 'h', 'c'], dict(hidden_size=hidden))], ('y', 'h'), **tensors)
    y, h = g(x=x)
    expected, (last, _) = lstm(x)
    expected = expected.reshape(9, 1, 2, hidden).transpose(1, 2)
    assert y.shape == (9, 2, 1, hidden)
    assert torch.allclose(y, expected, atol=0.02 if quantise else 1e-5)
    assert torch.allclose(h, last, atol=0.02 if quantise else 1e-5)


def test_chains_become_one_operation_each():
    torch.manual_seed(0)
    x, style = torch.randn(1, 24, 70) + 3, torch.randn(1, 5)
    tensors = dict(w=torch.randint(0, 9, (5, 48), dtype=torch.uint8), scale=torch.full((48,), 0.1))
    tensors |= dict(wz=torch.full((48,), 4, dtype=torch.uint8), axis=torch.tensor([2]), halves=torch.tensor([24, 24]))
    tensors |= dict(one=torch.tensor(1.0), small=torch.tensor(1e-5))
    nodes = [(op, [{'x': 'style', 'y': 'both'}.get(n, n) for n in i], [{'y': 'both'}.get(n, n) for n in o], a)
             for op, i, o, a in quantised('MatMulInteger', None, {}, None)]  # fmt: skip
    nodes += [
        ('Unsqueeze', ['both', 'axis'], ['both1'], {}),
        ('Split', ['both1', 'halves'], ['gain', 'shift'], dict(axis=1)),
        ('Add', ['gain', 'one'], ['gain1'], {}),
        ('ReduceMean', ['x', 'axis'], ['mean'], {}),
        ('Sub', ['x', 'mean'], ['d'], {}),
        ('Mul', ['d', 'd'], ['d2'], {}),
        ('ReduceMean', ['d2', 'axis'], ['v'], {}),
        ('Add', ['v', 'small'], ['v1'], {}),
        ('Sqrt', ['v1'], ['root'], {}),
        ('Div', ['d', 'root'], ['n'], {}),
        ('Mul', ['gain1', 'n'], ['scaled'], {}),
        ('Add', ['scaled', 'shift'], ['y'], {}),
    ]
    graph(nodes, **tensors)
    g = graph(nodes, **tensors)  # the first one left the list as it was
    gain, shift = (style @ ((tensors['w'].float() - 4) * 0.1))[..., None].split(24, 1)
    expected = (1 + gain) * torch.nn.functional.instance_norm(x) + shift
    assert torch.allclose(g(x=x, style=style)[0], expected, atol=1e-4)
    assert g.ops == ['Linear', 'Unsqueeze', 'Split', 'Normalise', 'AddMul']


def test_shapes_stay_on_the_host_and_an_array_meets_a_tensor():
    nodes = [
        ('Shape', ['x'], ['shape'], {}),
        ('Gather', ['shape', 'last'], ['length'], dict(axis=0)),
        ('Range', ['zero', 'length', 'one'], ['steps'], {}),
        ('Cast', ['steps'], ['steps1'], dict(to=1)),
        ('Add', ['x', 'steps1'], ['y'], {}),
    ]
    g = graph(nodes, last=torch.tensor(1), zero=torch.tensor(0), one=torch.tensor(1))
    assert g(x=torch.ones(2, 30))[0].tolist() == [[1.0 + i for i in range(30)]] * 2
    assert g.moves == {'to the device': 1}


def test_frozen_finds_what_no_size_changes():
    from onnx_torch import frozen

    nodes = [('Shape', ['x'], ['shape'], {}), ('Gather', ['shape', 'first'], ['rows'], dict(axis=0)),
             ('Gather', ['shape', 'last'], ['length'], dict(axis=0)), ('Mul', ['x', 'length'], ['y'], {}),
             ('Mul', ['y', 'rows'], ['z'], {})]  # fmt: skip
    model = dict(nodes=nodes, tensors=dict(first=torch.tensor(0), last=torch.tensor(1)), outputs=['z'])
    found = frozen(model, [dict(x=torch.ones(4, n)) for n in (3, 5)])
    assert list(found) == ['rows'] and found['rows'].item() == 4


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match='Einsum'):
        graph([('Einsum', ['x'], ['y'], {})])


@pytest.mark.parametrize('length', [2400, 2401, 2402])
def test_resampling_is_scipys(length):
    from kokoro_torch import Resampler

    time = 2 * np.pi * np.arange(length) / 24000
    sound = np.sin(440 * time) + 0.5 * np.sin(11000 * time)
    ours = Resampler('cpu')(torch.from_numpy(sound).float()).numpy()
    theirs = resample_poly(sound, 2, 3)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < 1e-5


def test_make_writes_shards_that_corpus_reads(monkeypatch, tmp_path, capfd):
    """A model whose sound is its style: 600 samples a token."""
    import kokoro_torch
    from corpus import load

    nodes = [('Shape', ['tokens'], ['shape'], {}), ('Expand', ['style', 'shape1'], ['long'], {}),
             ('Concat', ['long', 'style'], ['y'], dict(axis=0))]  # fmt: skip
    voices = {name: torch.randn(40, 256).half() for name in ('a', 'b')}
    model = dict(nodes=nodes, tensors=dict(shape1=torch.tensor([40, 256])), outputs=['y'], voices=voices)
    jobs = [dict(text=f'number {i}', speaker='a-b', ids=[1] * (1 + i), names=['a', 'b'], share=0.5, speed=1.0)
            for i in range(30)]  # fmt: skip
    jobs += [jobs[0] | dict(text='fails', ids=[1] * 41)]
    torch.save(model, tmp_path / 'kokoro.pt')
    (tmp_path / 'kokoro.pt.xz.0').write_bytes(lzma.compress((tmp_path / 'kokoro.pt').read_bytes()))
    (tmp_path / 'jobs.jsonl.xz').write_bytes(lzma.compress('\n'.join(map(json.dumps, jobs)).encode()))
    out = tmp_path / 'out'
    arguments = ['make', str(out), '--model', str(tmp_path), '--processes', '2', '--threads', '2']
    monkeypatch.setattr(sys, 'argv', ['kokoro_torch.py', *arguments])
    with pytest.raises(SystemExit) as stopped:
        kokoro_torch.main()
    printed = capfd.readouterr()
    assert stopped.value.code == 1, 'one of 16 is more than may fail'
    assert "'fails' failed" in printed.err and '1 of 2 processes failed' in printed.out
    rows = load(out)
    assert sorted(row['text'] for row in rows) == sorted(f'number {i}' for i in range(30))
    assert all(np.abs(row['sound']).max() in (16383, 16384) and row['source'] == 'kokoro' for row in rows)
