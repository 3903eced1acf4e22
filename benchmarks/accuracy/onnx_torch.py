"""Runs an ONNX graph with torch operations, for a machine without onnxruntime: what kokoro_torch.py speaks with.

`Graph(model, device)` takes a dict: nodes, a list of (op, inputs, outputs, attributes); tensors, the initialisers by
name; inputs and outputs, names. Quantised products are computed in floating point with dequantised weights, so nothing
quantises activations. Values are torch tensors on the device, or numpy arrays on the host for the arithmetic of shapes;
an array that meets a tensor is lifted to the device.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from onnx_layers import OPS
from onnx_ops import FLOAT, INT32
from torch import Tensor

PRODUCTS = ('MatMulInteger', 'ConvInteger')


class Graph:
    """`graph(name=value, ...)` returns the list of outputs.

    Args:
        model: nodes, tensors, inputs, outputs; see above.
        device: where tensors live.

    Raises:
        ValueError: an operation that this module does not know.
    """

    def __init__(self, model: dict, device: str | torch.device = 'cpu'):
        self.device, self.outputs = torch.device(device), model['outputs']
        unknown = {node[0] for node in model['nodes']} - OPS.keys() - {'DynamicQuantizeLinear'}
        if unknown:
            raise ValueError(f'operations {sorted(unknown)} are unknown: add them to onnx_ops.py')
        self.moves, self.lifted, self.kept = Counter(), {}, {}  # host to device and back; arrays already lifted
        self.constants = {name: self._initial(tensor) for name, tensor in model['tensors'].items()}
        nodes = _without_quantisation([[o, [*i], [*out], a] for o, i, out, a in model['nodes']], self.constants)
        nodes = self._folded(nodes)
        nodes = self._folded(_products(nodes, self.constants, self.device))
        nodes = _used(_normalisations(nodes, self.constants), self.outputs)
        nodes = _grouped(_with_constants(nodes, self.constants), self.constants)
        nodes = _used(_sums_of_products(nodes), self.outputs)
        self.ops = [node[0] for node in nodes]
        last = {name: i for i, node in enumerate(nodes) for name in node[1]}
        ends = [[] for _ in nodes]
        for name, i in last.items():
            if name not in self.constants and name not in self.outputs:
                ends[i].append(name)
        used = {name for node in nodes for name in node[1]} | set(self.outputs)
        self.constants = {name: value for name, value in self.constants.items() if name in used}
        self.steps = [(self._function(n), tuple(n[1]), tuple(n[2]), tuple(e)) for n, e in zip(nodes, ends, strict=True)]
        self.kept = {id(v): (v, self._moved(v)) for v in self.constants.values() if _array(v) and v.size > 1}

    def _initial(self, tensor: Tensor) -> Tensor | np.ndarray:
        """Shapes and single numbers stay on the host."""
        tensor = tensor.float() if tensor.dtype == torch.float16 else tensor
        small = tensor.ndim <= 1 and tensor.numel() <= 20
        if small or tensor.dtype in (torch.int64, torch.int32, torch.bool):
            return tensor.numpy()
        return tensor.to(self.device)

    def _function(self, node: list) -> Callable:
        return OPS[node[0]](self, node[3])

    def _folded(self, nodes: list) -> list:
        """What depends on constants alone, computed."""
        left = []
        for node in nodes:
            if node[1] and all(name in self.constants or not name for name in node[1]):
                result = self._function(node)(*(self.constants.get(name) for name in node[1]))
                self.constants.update(zip(node[2], result if isinstance(result, (tuple, list)) else [result]))
            else:
                left.append(node)
        return left

    def _moved(self, array: np.ndarray) -> Tensor:
        self.moves['to the device'] += 1
        return torch.tensor(array).to(self.device)

    def lift(self, value, ndim: int = 0) -> Tensor | float | int:
        """An array for an operation with a tensor of `ndim` axes: one number as a Python number, more as a tensor."""
        if isinstance(value, Tensor) or value is None:
            return value
        if value.size == 1 and value.ndim <= ndim:
            return value.item()
        known = self.kept.get(id(value)) or self.lifted.get(id(value))
        if known is None:
            known = self.lifted[id(value)] = value, self._moved(value)
        return known[1]

    def host(self, value) -> np.ndarray:
        """A tensor's values; waits for the device."""
        if isinstance(value, Tensor):
            self.moves['to the host'] += 1
            return value.cpu().numpy()
        return value

    @torch.inference_mode()
    def __call__(self, record: Callable | None = None, **inputs) -> list:
        self.lifted = {}
        values = {'': None} | self.constants | inputs
        for function, names, outputs, ends in self.steps:
            result = function(*[values[name] for name in names])
            if len(outputs) == 1:
                result = result if not isinstance(result, (tuple, list)) else result[0]
                values[outputs[0]] = result
            else:
                values.update(zip(outputs, result))
            if record:
                record(outputs, values)
            for name in ends:
                values.pop(name, None)
        return [values[name] for name in self.outputs]


def frozen(model: dict, examples: list[dict], limit: int = 4096) -> dict[str, Tensor]:
    """Values up to `limit` elements that are the same for all examples, which must differ in every size: constants."""
    seen = []
    for example in examples:
        found = {}

        def record(names, values, found=found):
            for name in filter(None, names):
                value = torch.tensor(values[name]) if _array(values[name]) else values[name]
                found[name] = value.clone() if value.numel() <= limit else None

        Graph(model)(record, **example)
        seen.append(found)
    first, *others = seen
    same = {n: v for n, v in first.items() if v is not None and all(_equal(v, other[n]) for other in others)}
    return same


def _equal(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)


def _array(value) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def _renamed(nodes: list, names: dict[str, str]) -> list:
    def final(name):
        while name in names:
            name = names[name]
        return name

    for node in nodes:
        node[1] = [final(name) for name in node[1]]
    return nodes


def _used(nodes: list, outputs: list[str]) -> list:
    needed, left = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node[2]):
            needed.update(node[1])
            left.append(node)
    return left[::-1]


def _without_quantisation(nodes: list, constants: dict) -> list:
    """Activations pass as they are, with scale 1 and zero point 0; biases are not rounded to their scale."""
    names, left = {}, []
    nodes = [node for node in nodes if not all(name in constants for name in node[2])]
    for node in nodes:
        for i, name in enumerate(node[2]):
            if name in constants:  # frozen, of a node with several outputs
                node[2][i] = f'{name} again'
    rounded = {node[1][0] for node in nodes if node[0] == 'Cast' and node[3]['to'] == INT32}
    for node in nodes:
        op, inputs, outputs, attributes = node
        if op == 'DynamicQuantizeLinear':
            names[outputs[0]] = inputs[0]
            constants[outputs[1]], constants[outputs[2]] = np.float32(1), np.int64(0)
        elif (op == 'Cast' and attributes['to'] == INT32) or (op == 'Floor' and outputs[0] in rounded):
            names[outputs[0]] = inputs[0]
        else:
            left.append(node)
    return _renamed(left, names)


def _products(nodes: list, constants: dict, device: torch.device) -> list:
    """Integer products with constant weights, then constant factors and summands: one product with a bias."""
    users = {}
    for node in nodes:
        for name in node[1]:
            users.setdefault(name, []).append(node)
    gone = set()
    for node in nodes:
        if node[0] not in PRODUCTS or node[1][1] not in constants:
            continue
        conv = node[0] == 'ConvInteger'
        weight = constants[node[1][1]].float()
        if len(node[1]) > 3 and node[1][3]:
            weight = weight - torch.as_tensor(constants[node[1][3]]).to(device).float()
        size = len(weight) if conv else weight.shape[-1]
        bias, end = torch.zeros(size, device=device), node
        while len(users.get(end[2][0], [])) == 1:
            after = users[end[2][0]][0]
            others = [name for name in after[1] if name != end[2][0]]
            if after[0] == 'Cast' and after[3]['to'] == FLOAT:
                pass
            elif after[0] in ('Mul', 'Add') and len(others) == 1 and others[0] in constants:
                other = torch.as_tensor(constants[others[0]]).to(device).float().flatten()
                if len(other) not in (1, size):
                    break
                if after[0] == 'Mul':
                    weight, bias = weight * (other.view(-1, *[1] * (weight.ndim - 1)) if conv else other), bias * other
                else:
                    bias = bias + other
            else:
                break
            end = after
            gone.add(id(end))
        weight = weight if conv else weight.mT
        constants[end[2][0] + ' weight'], constants[end[2][0] + ' bias'] = weight.contiguous(), bias
        node[:3] = 'Conv' if conv else 'Linear', [node[1][0], end[2][0] + ' weight', end[2][0] + ' bias'], end[2]
    return [node for node in nodes if id(node) not in gone]


def _normalisations(nodes: list, constants: dict) -> list:
    """x minus its mean, divided by the root of its variance over the last of three axes: one operation."""
    by = {name: node for node in nodes for name in node[2]}
    for node in nodes:
        chain = [node]  # Div, Sqrt, Add, ReduceMean, Mul, Sub, ReduceMean
        for op, position in (('Div', 1), ('Sqrt', 0), ('Add', 0), ('ReduceMean', 0), ('Mul', 0), ('Sub', 1)):
            if chain[-1][0] != op or chain[-1][1][position] not in by:
                break
            chain.append(by[chain[-1][1][position]])
        if len(chain) != 7 or chain[-1][0] != 'ReduceMean':
            continue
        div, _, add, variance, square, sub, mean = chain
        difference, epsilon = sub[2][0], constants.get(add[1][1])
        axes = [np.ravel(constants.get(n[1][1], 0)).tolist() for n in (variance, mean)]
        same = div[1][0] == difference and square[1] == [difference] * 2 and sub[1][0] == mean[1][0]
        if same and axes == [[2], [2]] and epsilon is not None and epsilon.size == 1:
            node[:] = ['Normalise', [mean[1][0]], node[2], {'epsilon': float(epsilon)}]
    return nodes


def _with_constants(nodes: list, constants: dict) -> list:
    """A constant that is added to a part of a split product goes into the product's bias: scales are 1 + scale."""
    by, uses = {name: node for node in nodes for name in node[2]}, Counter(name for node in nodes for name in node[1])
    gone = set()
    for node in nodes:
        if node[0] != 'Add' or getattr(constants.get(node[1][1]), 'size', 0) != 1:
            continue
        chain = [node]  # Add, Split, Unsqueeze, Linear
        for op in ('Split', 'Unsqueeze', 'Linear'):
            before = by.get(chain[-1][1][0])
            if before is None or before[0] != op or uses[chain[-1][1][0]] != 1 or before[3].get('axis', 1) != 1:
                break
            chain.append(before)
        if len(chain) == 4 and np.ravel(constants.get(chain[2][1][1], 0)).tolist() == [2]:
            sizes, part = constants[chain[1][1][1]], chain[1][2].index(node[1][0])
            start = int(sizes[:part].sum())
            constants[chain[3][1][2]][start : start + int(sizes[part])] += float(constants[node[1][1]])
            chain[1][2][part] = node[2][0]
            gone.add(id(node))
    return [node for node in nodes if id(node) not in gone]


def _grouped(nodes: list, constants: dict) -> list:
    """Products of one tensor with several weights are one product."""
    groups, gone = {}, set()
    for node in nodes:
        if node[0] == 'Linear':
            groups.setdefault(node[1][0], []).append(node)
    for name, group in groups.items():
        if len(group) > 1:
            both = [f'{group[0][2][0]} {kind} of {len(group)}' for kind in ('weight', 'bias')]
            for i, joined in enumerate(both, 1):
                constants[joined] = torch.cat([constants[node[1][i]] for node in group])
            sizes = [len(constants[node[1][2]]) for node in group]
            group[0][:] = ['Linears', [name, *both], [node[2][0] for node in group], {'sizes': sizes}]
            gone.update(id(node) for node in group[1:])
    return [node for node in nodes if id(node) not in gone]


def _sums_of_products(nodes: list) -> list:
    """Add(Mul(a, b), c) is one operation."""
    by, uses = {node[2][0]: node for node in nodes}, Counter(name for node in nodes for name in node[1])
    for node in nodes:
        for i in (0, 1) if node[0] == 'Add' else ():
            product = by.get(node[1][i])
            if product and product[0] == 'Mul' and uses[node[1][i]] == 1:
                node[:] = ['AddMul', [*product[1], node[1][1 - i]], node[2], {}]
                break
    return nodes
