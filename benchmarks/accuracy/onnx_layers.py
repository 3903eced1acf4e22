"""ONNX's operations of networks for onnx_torch.py; see onnx_ops.py."""

import numpy as np
import torch
from onnx_ops import OPS, op
from torch import Tensor
from torch.nn import functional as F


@op('Linear')
def _linear(graph, attributes, x, weight, bias):
    return F.linear(x, weight, bias)


@op('Linears')
def _linears(graph, attributes, x, weight, bias):
    return F.linear(x, weight, bias).split(attributes['sizes'], -1)


@op('MatMulInteger')
def _matmul_integer(graph, attributes, a, b, zero_a=None, zero_b=None):
    """A column of b has its own zero point; a's activations are not quantised."""
    b = graph.lift(b, -1).float()
    return graph.lift(a, -1).float() @ (b if zero_b is None else b - graph.lift(zero_b))


@op('Conv')
def _conv(graph, attributes, x, weight, bias=None):
    before, after = attributes.get('pads', (0, 0))
    if before != after:
        x, before = F.pad(x, (before, after)), 0
    step, dilation = (attributes.get(k, [1])[0] for k in ('strides', 'dilations'))
    return F.conv1d(x, weight, bias, step, before, dilation, attributes.get('group', 1))


@op('ConvInteger')
def _conv_integer(graph, attributes, x, weight, zero_x=None, zero_weight=None):
    weight = graph.lift(weight, -1).float()
    weight = weight if zero_weight is None else weight - graph.lift(zero_weight)
    return _conv(graph, attributes, x.float(), weight)


@op('ConvTranspose')
def _conv_transpose(graph, attributes, x, weight, bias=None):
    before, after = attributes.get('pads', (0, 0))
    if before != after:
        raise ValueError(f'a transposed convolution with pads {before} and {after}: only equal ones are known')
    step, dilation, extra = (attributes.get(k, d)[0] for k, d in _TRANSPOSED)
    return F.conv_transpose1d(x, weight, bias, step, before, extra, attributes.get('group', 1), dilation)


_TRANSPOSED = (('strides', [1]), ('dilations', [1]), ('output_padding', [0]))


@op('DequantizeLinear')
def _dequantize(graph, attributes, x, scale, zero=None):
    x = graph.lift(x, -1).float()
    return (x if zero is None else x - graph.lift(zero)) * graph.lift(scale)


def _lstm(graph, attributes):
    """Both kinds: of floats, and with dequantised weights. The weights must be constants; they are read once."""
    built = []

    def call(x, weight, recurrent, bias, lengths=None, first=None, cell=None, peephole=None, *scales):
        if not built:
            if lengths is not None or peephole is not None:
                raise ValueError('an LSTM with lengths or peepholes is unknown')
            if scales:  # quantised weights are [directions, input, 4 hidden], plain ones the other way round
                weight, recurrent = (
                    ((graph.lift(w, -1).float() - _columns(graph, zero)) * _columns(graph, scale)).mT
                    for w, scale, zero in ((weight, *scales[:2]), (recurrent, *scales[2:]))
                )
            built.append(_torch_lstm(graph, attributes['hidden_size'], weight, recurrent, graph.lift(bias, -1)))
        zeros = first is None
        out, (h, c) = built[0](x, None if zeros else (graph.lift(first, -1), graph.lift(cell, -1)))
        directions = len(h)
        return out.reshape(*out.shape[:2], directions, -1).transpose(1, 2), h, c

    return call


def _columns(graph, x) -> Tensor:
    """[directions] or [directions, columns] as [directions, 1, 1 or columns]."""
    x = graph.lift(x, -1).float()
    return x.reshape(len(x), 1, -1)


def _torch_lstm(graph, hidden: int, weight: Tensor, recurrent: Tensor, bias: Tensor) -> torch.nn.LSTM:
    """ONNX orders the gates input, output, forget, cell; torch input, forget, cell, output."""

    def ordered(w):
        i, o, f, c = w.split(hidden)
        return torch.cat([i, f, c, o])

    lstm = torch.nn.LSTM(weight.shape[-1], hidden, bidirectional=len(weight) == 2, device=graph.device)
    with torch.no_grad():
        for direction, end in enumerate(('', '_reverse')[: len(weight)]):
            getattr(lstm, f'weight_ih_l0{end}').copy_(ordered(weight[direction]))
            getattr(lstm, f'weight_hh_l0{end}').copy_(ordered(recurrent[direction]))
            getattr(lstm, f'bias_ih_l0{end}').copy_(ordered(bias[direction, : 4 * hidden]))
            getattr(lstm, f'bias_hh_l0{end}').copy_(ordered(bias[direction, 4 * hidden :]))
    lstm.flatten_parameters()
    return lstm.eval()


OPS['LSTM'] = OPS['DynamicQuantizeLSTM'] = _lstm


@op('LayerNormalization')
def _layer_norm(graph, attributes, x, weight, bias=None):
    return F.layer_norm(x, weight.shape, weight, bias, attributes['epsilon'])


@op('SkipLayerNormalization')
def _skip_layer_norm(graph, attributes, x, skip, weight, bias=None, more=None):
    x = x + skip if more is None else x + skip + more
    return F.layer_norm(x, weight.shape, weight, bias, attributes['epsilon'])


@op('Normalise')
def _normalise(graph, attributes, x):
    return F.layer_norm(x, x.shape[-1:], eps=attributes['epsilon'])


@op('FastGelu')
def _fast_gelu(graph, attributes, x, bias=None):
    return F.gelu(x if bias is None else x + graph.lift(bias, -1), approximate='tanh')


@op('LeakyRelu')
def _leaky_relu(graph, attributes, x):
    return F.leaky_relu(x, attributes.get('alpha', 0.01))


@op('Softmax')
def _softmax(graph, attributes, x):
    return torch.softmax(x, attributes.get('axis', -1))


@op('Resize')
def _resize(graph, attributes, x, region, scales):
    scales = graph.host(scales).astype(np.float32)
    known = {('nearest', 'asymmetric'): 'nearest', ('linear', 'half_pixel'): 'linear'}
    how = attributes['mode'], attributes['coordinate_transformation_mode']
    if how not in known or scales[:2].tolist() != [1, 1]:
        raise ValueError(f'a resize of {how} by {scales.tolist()} is unknown')
    return F.interpolate(x, size=int(np.floor(x.shape[-1] * scales[-1])), mode=known[how])


@op('Pad')
def _pad(graph, attributes, x, pads, value=None):
    pads = graph.host(pads).tolist()
    if len(pads) != 6 or pads[:2] + pads[3:5] != [0] * 4:
        raise ValueError(f'pads {pads} are unknown: three axes, the last one padded, are')
    return F.pad(x, (pads[2], pads[5]), mode=attributes.get('mode', 'constant'))


@op('STFT')
def _stft(graph, attributes, x, step, window, length):
    length = graph.host(length).item()
    frames = x.unfold(-1, length, graph.host(step).item()) * graph.lift(window, -1)
    spectrum = torch.view_as_real(torch.fft.rfft(frames))
    spectrum[..., 0, 1].zero_()
    if length % 2 == 0:
        spectrum[..., -1, 1].zero_()
    return spectrum + 1e-20  # no 0, whose sign or quotient would decide a phase: that of -1 is +pi, as in torch.angle
