"""A function of tensors recorded as a CUDA graph at its second call with the same shapes, and replayed from then on.

Hundreds of launches from Python become one. Recording costs two runs, so shapes that come once are not recorded, and
only the last recordings are kept. They work in the same memory, that of the largest: what they read is copied in, and
results are copied out.
"""

import gc
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

# Recordings kept, one for each stream and shape in use: batches of equal size with rows of up to two minutes have some
# 30 shapes, forward and backward.
MOST = 64
ALIGNED = 256  # bytes between what is read
_seen: OrderedDict[tuple, int] = OrderedDict()
_graphs: OrderedDict[tuple, tuple] = OrderedDict()
_streams: dict[tuple, 'torch.cuda.Stream'] = {}  # of a caller's: to record on, one each, as products keep memory for it
_rooms: dict[tuple, Tensor] = {}  # of a caller's: bytes that its recordings read from; old ones may have a smaller one


def replay(function, tensors: tuple[Tensor, ...], options: tuple) -> tuple[Tensor, ...]:
    """`function(*tensors, *options)`, a tuple of tensors. No gradients; results are the caller's own."""
    shapes = tuple((t.shape, t.stride(), t.dtype) for t in tensors)
    key = (function, shapes, options, tensors[0].device, torch.cuda.current_stream().cuda_stream)
    if key in _graphs:
        _graphs.move_to_end(key)
        graph, places, results = _graphs[key]
        return _run(graph, places, results, tensors)
    _seen[key] = _seen.pop(key, 0) + 1
    if len(_seen) > 256:
        _seen.popitem(last=False)
    if _seen[key] < 2:
        return function(*tensors, *options)
    try:
        recorded = _record(function, tensors, options, key[-2:])
    except torch.cuda.OutOfMemoryError:  # memory that torch keeps for reuse is not given to a recording: free it first
        torch.cuda.empty_cache()
        return function(*tensors, *options)
    del _seen[key]
    _graphs[key] = recorded
    if len(_graphs) > MOST:
        _graphs.popitem(last=False)
    return _run(*_graphs[key], tensors)


def forget() -> None:
    """Give back the memory of all recordings."""
    _graphs.clear()
    _seen.clear()
    _rooms.clear()


def _record(function, tensors, options, where: tuple):
    if where not in _streams:
        _streams[where] = torch.cuda.Stream()
    pool = next((kept[0].pool() for key, kept in _graphs.items() if key[-2:] == where), None)
    places = _places([_once(t) for t in tensors], where)
    for place, tensor in zip(places, tensors):
        place.copy_(_once(tensor))
    given = tuple(place.expand(tensor.shape) for place, tensor in zip(places, tensors))
    graph, results = record(lambda: function(*given, *options), _streams[where], pool)
    return graph, places, results


def _places(tensors: list[Tensor], where: tuple) -> tuple[Tensor, ...]:
    """Tensors like these side by side in the room of the caller's stream, where replays follow each other."""
    sizes = [-(-t.numel() * t.element_size() // ALIGNED) * ALIGNED for t in tensors]
    with torch.inference_mode(False):  # training may write there after evaluation
        if where not in _rooms or _rooms[where].numel() < sum(sizes):
            _rooms[where] = torch.empty(sum(sizes) * 5 // 4, dtype=torch.uint8, device=where[0])
        parts = _rooms[where][: sum(sizes)].split(sizes)
        shapes = [torch.empty_like(t, device='meta') for t in tensors]
        return tuple(part.view(t.dtype).as_strided(t.shape, t.stride()) for part, t in zip(parts, shapes))


def record(function, stream=None, pool=None) -> tuple['torch.cuda.CUDAGraph', Any]:
    """The launches of function() as a graph, and its result, which a replay fills. All it calls has run before.

    pool: of other recordings, whose replays then overwrite this one's result.
    """
    graph, stream = torch.cuda.CUDAGraph(), stream or torch.cuda.Stream()
    torch.cuda.synchronize()  # and not torch.cuda.graph(), which also collects garbage: 0.1 s
    collects = gc.isenabled()
    gc.disable()  # an old recording that is garbage, given back now, would spoil this one
    try:
        with torch.cuda.stream(stream):
            graph.capture_begin(pool, capture_error_mode='thread_local')
            try:
                results = function()
            finally:
                graph.capture_end()
    finally:
        if collects:
            gc.enable()
    return graph, results


def _run(graph, places, results, tensors) -> tuple[Tensor, ...]:
    for place, tensor in zip(places, tensors):
        place.copy_(_once(tensor))
    graph.replay()
    return tuple(result.clone() for result in results)


def _once(t: Tensor) -> Tensor:
    """t without the copies that `expand` makes of it."""
    for dim, (size, stride) in enumerate(zip(t.shape, t.stride())):
        if stride == 0 and size > 1:
            t = t.narrow(dim, 0, 1)
    return t
