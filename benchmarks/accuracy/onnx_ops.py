"""ONNX's operations of arithmetic and shape for onnx_torch.py: `OPS[name](graph, attributes)` is a function of inputs.

A value is a torch tensor, on the device, or a numpy array, on the host, for the arithmetic of shapes; None is an input
that is left out. `graph.lift` brings an array to the device, `graph.host` a tensor's values to the host.
"""

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

FLOAT, INT32 = 1, 6  # ONNX's numbers of types
NUMPY = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_}
TORCH = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
OPS: dict[str, Callable] = {}


def op(*names: str) -> Callable:
    """Registers a function (graph, attributes, *inputs)."""

    def register(function):
        for name in names:
            OPS[name] = lambda graph, attributes: lambda *inputs: function(graph, attributes, *inputs)
        return function

    return register


def binary(name: str, function: Callable) -> None:
    def make(graph, attributes):
        def call(a, b):
            if isinstance(a, Tensor):
                return function(a, b if isinstance(b, Tensor) else graph.lift(b, a.ndim))
            return function(graph.lift(a, b.ndim), b) if isinstance(b, Tensor) else np.asarray(function(a, b))

        return call

    OPS[name] = make


def unary(name: str, torch_function: Callable, numpy_function: Callable | None = None) -> None:
    def make(graph, attributes):
        return lambda x: torch_function(x) if isinstance(x, Tensor) else np.asarray(numpy_function(x))

    OPS[name] = make


def _divide(a, b):
    whole = not isinstance(a, Tensor) and np.issubdtype(np.asarray(a).dtype, np.integer)
    return a // b if whole else a / b  # ONNX divides whole numbers, of shapes and so positive, without the rest


def _power(a, b):
    return torch.square(a) if isinstance(b, float) and b == 2 else a**b


for _name, _function in {
    'Add': operator.add, 'Sub': operator.sub, 'Mul': operator.mul, 'Div': _divide, 'Pow': _power,
    'Equal': operator.eq, 'Greater': operator.gt, 'GreaterOrEqual': operator.ge, 'Less': operator.lt,
    'And': operator.and_,
}.items():  # fmt: skip
    binary(_name, _function)
for _name in ('Sqrt', 'Floor', 'Round', 'Exp', 'Sin', 'Cos', 'Tanh', 'Atan', 'Sigmoid'):
    unary(_name, getattr(torch, _name.lower()), getattr(np, _name.lower(), None))


@op('AddMul')
def _add_mul(graph, attributes, a, b, c):
    if isinstance(a, Tensor) and isinstance(b, Tensor) and isinstance(c, Tensor):
        return torch.addcmul(c, a, b)
    return OPS['Add'](graph, {})(OPS['Mul'](graph, {})(a, b), c)


@op('Cast')
def _cast(graph, attributes, x):
    kind = attributes['to']
    return x.to(TORCH[kind]) if isinstance(x, Tensor) else np.asarray(x).astype(NUMPY[kind])


@op('Shape')
def _shape(graph, attributes, x):
    return np.array(x.shape[attributes.get('start', 0) : attributes.get('end')], np.int64)


@op('Gather')
def _gather(graph, attributes, x, index):
    axis = attributes.get('axis', 0)
    if not isinstance(x, Tensor) and not isinstance(index, Tensor):
        return np.asarray(np.take(x, index, axis))
    if not isinstance(index, Tensor) and index.ndim == 0:
        return x.select(axis, int(index))
    x, index = graph.lift(x, -1), graph.lift(index, -1)
    index = torch.where(index < 0, index + x.shape[axis], index).long()
    return x.index_select(axis, index.flatten()).reshape(*x.shape[:axis], *index.shape, *x.shape[axis % x.ndim + 1 :])


@op('Concat')
def _concat(graph, attributes, *parts):
    if any(isinstance(part, Tensor) for part in parts):
        return torch.cat([graph.lift(part, -1) for part in parts], attributes['axis'])
    return np.concatenate(parts, attributes['axis'])


@op('Unsqueeze')
def _unsqueeze(graph, attributes, x, axes):
    axes = np.ravel(axes).tolist()
    if not isinstance(x, Tensor):
        return np.expand_dims(x, tuple(axes))
    for axis in sorted(a % (x.ndim + len(axes)) for a in axes):
        x = x.unsqueeze(axis)
    return x


@op('Squeeze')
def _squeeze(graph, attributes, x, axes=None):
    return x.squeeze() if axes is None else x.squeeze(tuple(np.ravel(axes).tolist()))


@op('Reshape')
def _reshape(graph, attributes, x, shape):
    shape = [x.shape[i] if n == 0 else n for i, n in enumerate(graph.host(shape).tolist())]
    return x.reshape(shape)


@op('Expand')
def _expand(graph, attributes, x, shape):
    shape = np.broadcast_shapes(tuple(x.shape), tuple(graph.host(shape).tolist()))
    return x.expand(shape) if isinstance(x, Tensor) else np.broadcast_to(x, shape)


@op('Transpose')
def _transpose(graph, attributes, x):
    return x.permute(attributes['perm']) if isinstance(x, Tensor) else x.transpose(attributes['perm'])


@op('Split')
def _split(graph, attributes, x, sizes):
    return torch.split(x, graph.host(sizes).tolist(), attributes['axis'])


@op('Slice')
def _slice(graph, attributes, x, starts, ends, axes=None, steps=None):
    where = [slice(None)] * x.ndim
    starts, ends = (graph.host(v).tolist() for v in (starts, ends))
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


@op('Where')
def _where(graph, attributes, condition, a, b):
    if not any(isinstance(v, Tensor) for v in (condition, a, b)):
        return np.where(condition, a, b)
    return torch.where(graph.lift(condition, -1), graph.lift(a, 0), graph.lift(b, 0))


@op('Range')
def _range(graph, attributes, start, end, step):
    return np.arange(*(graph.host(v).item() for v in (start, end, step)))


@op('ConstantOfShape')
def _constant_of_shape(graph, attributes, shape):
    value = attributes['value'].numpy()
    return np.full(tuple(graph.host(shape).tolist()), value.item(), value.dtype)


@op('Clip')
def _clip(graph, attributes, x, low=None, high=None):
    return x.clip(graph.lift(low), graph.lift(high))


@op('CumSum')
def _cumsum(graph, attributes, x, axis):
    return x.cumsum(int(graph.host(axis).item()))


@op('NonZero')
def _nonzero(graph, attributes, x):
    return np.stack(np.nonzero(graph.host(x)))


@op('ScatterND')
def _scatter_nd(graph, attributes, x, index, updates):
    out = graph.lift(x, -1).clone()
    out[graph.lift(index, -1).unbind(-1)] = graph.lift(updates, -1)
    return out


@op('ReduceMean')
def _mean(graph, attributes, x, axes):
    return x.mean(tuple(graph.host(axes).tolist()), keepdim=bool(attributes.get('keepdims', 1)))


@op('ReduceSum')
def _sum(graph, attributes, x, axes):
    return x.sum(tuple(graph.host(axes).tolist()), keepdim=bool(attributes.get('keepdims', 1)))


@op('MatMul')
def _matmul(graph, attributes, a, b):
    return torch.matmul(graph.lift(a, -1), graph.lift(b, -1))


@op('FusedMatMul')
def _fused_matmul(graph, attributes, a, b):
    a, b = graph.lift(a, -1), graph.lift(b, -1)
    a = a.mT if attributes.get('transA') else a
    return attributes.get('alpha', 1.0) * (a @ (b.mT if attributes.get('transB') else b))
