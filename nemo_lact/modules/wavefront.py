"""Evaluation of long input with all layers at work at once: the segments' result in far fewer, larger products.

A layer needs its own memory's last chunk, and of the layer below the same chunk and what lies right of it. So in step
s layer l works on chunk s − lag · l, and what L layers do is one product over [L, ...] instead of L small ones. A step
has the same shapes every time; on a GPU it is recorded once and replayed as one CUDA graph. Layers that have nothing
yet, or nothing more, run along on frames that count as padding: those change no memory and are not attended to.
"""

import os
import weakref

import torch
from torch import Tensor

from nemo_lact.modules.fast_weights import MemoryState
from nemo_lact.modules.stacked_layers import forget_layers, products_dtype, stacked_layers
from nemo_lact.modules.wave_step import WaveStep, delay, fast_memories_problem
from nemo_lact.ops.cuda_graphs import record

LEAST_CHUNKS = 8  # of the longest row: before and after the input, some layers run for nothing
_choice = os.environ.get('NEMO_LACT_WAVEFRONT', 'auto')
_idle: 'weakref.WeakKeyDictionary' = weakref.WeakKeyDictionary()  # encoder -> (key, WaveStep, its graph or None)


def use_wavefront(name: str) -> None:
    """Whether long input goes through all layers at once from now on: 'auto' (the rule of `why_not_wavefront`), 'on'
    (also where it is not faster), 'off'. The environment variable NEMO_LACT_WAVEFRONT gives the same choice at start.
    """
    global _choice
    if name not in ('auto', 'on', 'off'):
        raise ValueError(f"wavefront '{name}'; choose 'auto', 'on' or 'off'")
    _choice = name


def why_not_wavefront(encoder, chunks: int) -> str | None:
    """What keeps an input of so many memory chunks from the wavefront, in words; None where it runs.

    Raises:
        RuntimeError: 'on' was asked for where it cannot run.
    """
    config, window = encoder.config, tuple(encoder.att_context_size)
    problem = encoder.why_not_segments()
    if config.lact_chunk_tolerance:
        problem = f'lact_chunk_tolerance={config.lact_chunk_tolerance}: chunks of different lengths'
    elif problem is None and delay(config, window) > 1:
        problem = f'the right context of window {list(window)} and convolution is longer than a chunk'
    elif problem is None and not encoder.layers:
        problem = 'there are no layers'
    if _choice == 'on':
        if problem is not None:
            raise RuntimeError(f'the wavefront cannot run: {problem}. Choose NEMO_LACT_WAVEFRONT=auto')
        return None
    if _choice == 'off':
        return 'it is switched off'
    device, dtype = encoder.norm_out.weight.device, products_dtype(encoder)
    if problem is None and device.type != 'cuda':
        problem = f'the data is on {device}: it pays on a CUDA GPU'
    if problem is None and dtype not in (torch.bfloat16, torch.float16):
        problem = f'products in {str(dtype)[6:]}: it pays in half precision'
    if problem is None and chunks < LEAST_CHUNKS:
        problem = f'the input has {chunks} chunks a row; it pays from {LEAST_CHUNKS}'
    if problem is None and encoder.adaptation:
        problem = fast_memories_problem(encoder, dtype, device)
    return problem


class Wavefront:
    """B rows that begin together, through all layers, fed with the front end's frames.

    Args: as SegmentedPass's; `frames` [B] encoder frames of each row in all.
    """

    def __init__(
        self,
        encoder,
        frames: Tensor,
        states: list[MemoryState | None],
        learn: Tensor | None = None,
        offset: Tensor | None = None,
    ):
        self.encoder = encoder
        config, dtype = encoder.config, products_dtype(encoder)
        layers = stacked_layers(encoder, dtype)
        fast = fast_memories_problem(encoder, dtype, frames.device) is None
        options = (tuple(encoder.att_context_size), encoder.adaptation, fast, frames.size(0), frames.device)
        self.key = (id(layers), repr(config), *options)  # settings may be changed between two passes
        kept = _idle.pop(encoder, None)  # while it is in use here, nobody else takes it
        if kept is not None and kept[0] == self.key:
            self.step, self.graph = kept[1:]
        else:
            del kept
            with torch.inference_mode(False), torch.no_grad():
                self.step = WaveStep(config, layers, *options)
            self.graph = None
        with torch.inference_mode(False), torch.no_grad():
            self.step.start(frames, learn, offset, states)
        self.steps = self.given = self.taken = 0  # steps made, frames given out, frames taken in
        self.waiting: list[Tensor] = []  # [B, ., D]

    def feed(self, x: Tensor, last: bool) -> Tensor:
        """[B, n, D] more frames -> [B, m, D] frames that came through all layers; `last`: nothing follows."""
        chunk, step = self.step.chunk, self.step
        self.taken += x.size(1)
        self.waiting.append(x)
        outputs = [x[:, :0].to(step.frames_out.dtype)]
        # Ordinary tensors in both modes: buffers made in inference mode could not be used outside of it.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x = torch.cat(self.waiting, dim=1)
            whole = x.size(1) // chunk * chunk
            for at in range(0, whole, chunk):
                step.frames_in.copy_(x[:, at : at + chunk])
                self._advance(outputs)
            self.waiting = [x[:, whole:].clone()]
            if last:
                step.frames_in.zero_()
                step.frames_in[:, : x.size(1) - whole].copy_(x[:, whole:])
                while self.given < self.taken:
                    self._advance(outputs)
                    step.frames_in.zero_()
                self.after = step.states()
                self._put_back()
        return torch.cat(outputs, dim=1)

    def states(self) -> list[MemoryState | None]:
        """The memory of each layer, after the last frame; None of one without."""
        return [None if layer.mixer.memory is None else own for layer, own in zip(self.encoder.layers, self.after)]

    def _advance(self, outputs: list[Tensor]) -> None:
        if self.graph is not None:
            self.graph.replay()
        elif self.steps > 0 and self.step.frames_in.is_cuda:
            self.graph, _ = record(self.step)
            self.graph.replay()
        else:
            self.step()  # the first: it also compiles kernels, which cannot be recorded
        self.steps += 1
        if self.steps > self.step.latency:
            n = min(self.step.chunk, self.taken - self.given)
            outputs.append(self.step.frames_out[:, :n].clone())
            self.given += n

    def _put_back(self) -> None:
        _idle[self.encoder] = self.key, self.step, self.graph


def forget(encoder) -> None:
    """Give back the memory kept for the next input: buffers, the recorded step, the stacked parameters."""
    _idle.pop(encoder, None)
    forget_layers(encoder)
