"""Ablations: each is 'LaCT-Conformer' but for one thing, of as many parameters (5% more or less)."""

import random
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from contestants import CONTESTANTS, LACT_CONFORMER, MEL, Contestant, Recipe
from torch import Tensor

from nemo_lact import ops
from nemo_lact.modules.fast_weights import FastWeightMemory

BASE = 'LaCT-Conformer'
MORE_LONG = dict(short=0.2, middle=0.2, long=0.6)
JITTER = (32, 64, 128, 256)  # encoder frames of a chunk, drawn at every step
FROZEN_STEPS = 0.3  # share of the steps
CONSISTENCY = 0.2  # weight of the term beside the CTC loss, as in arXiv 2410.05101


class ChunkJitter(Contestant):
    """Another chunk length at every step; scored with that of the config."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scored, self.draw = self.encoder.config.lact_chunk_size, random.Random(0)

    def training_step(self, batch, batch_nb):
        self.encoder.config.lact_chunk_size = self.draw.choice(JITTER)
        return super().training_step(batch, batch_nb)

    def ways(self):
        return {'': self._as_configured}

    def _as_configured(self) -> None:
        self.encoder.config.lact_chunk_size = self.scored


class FrozenAtTimes(Contestant):
    """In a share of the steps the memory does not learn, so its initial weights must do by themselves.

    What learning gains over them is then what it learned of the recording.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draw = random.Random(0)

    def training_step(self, batch, batch_nb):
        self.encoder.adaptation = self.draw.random() >= FROZEN_STEPS
        return super().training_step(batch, batch_nb)

    def ways(self):
        return {'': partial(setattr, self.encoder, 'adaptation', True)}


class BothModes(Contestant):
    """Each step bidirectional with frames to come in its window, or causal without; scored in both modes.

    Its front end and convolutions must be causal: they have weights for one order only.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draw = random.Random(0)

    def training_step(self, batch, batch_nb):
        self._set(causal=self.draw.random() < 0.5)
        return super().training_step(batch, batch_nb)

    def ways(self):
        return {'': lambda: self._set(causal=False), 'causal': lambda: self._set(causal=True)}

    def _set(self, causal: bool) -> None:
        encoder = self.encoder
        encoder.config.lact_mode = 'causal' if causal else 'bidirectional'
        left = encoder.config.window[0]
        encoder.change_attention_model(att_context_size=[left, 0 if causal else left])


class TwoWindows(Contestant):
    """Causal memory, convolutions and front end; the window hears frames to come or not, as training draws it.

    Scored with each: offline, and as it streams.
    """

    def ways(self):
        return {
            '' if window[1] else 'causal': partial(self.encoder.set_default_att_context_size, window)
            for window in self.encoder.att_context_size_all
        }


class SameStepMemory(FastWeightMemory):
    """Step sizes divided by the evidence in a chunk, the share of it that is filled with valid frames.

    A step is a sum over the frames, so it grows with them. Here it is a mean times the frames of a full chunk.
    """

    more = None

    def forward(self, x, q, k, v, valid, cos, sin, *args, **kwargs):
        chunk = self.config.lact_chunk_size
        own = (torch.arange(valid.size(1), device=valid.device) // chunk).expand(valid.shape)  # chunk of each frame
        frames = torch.zeros_like(valid, dtype=torch.float32).scatter_add(1, own, valid.float())  # [B, T] of each chunk
        self.more = (chunk / frames.gather(1, own).clamp(min=1))[:, None, :, None, None]  # [B, 1, T, 1, 1]
        result = super().forward(x, q, k, v, valid, cos, sin, *args, **kwargs)
        self.more = None
        return result

    def _to_learn(self, *args):
        k, v, eta, mu = super()._to_learn(*args)
        return k, v, eta * self.more, mu


class ScoredByReference(Contestant):
    """Of layers that are not the package's: the kernels of whole layers have its rules built in."""

    def ways(self):
        return {'': lambda: ops.use_implementation('reference')}


class SameStep(ScoredByReference):
    """With `SameStepMemory`, which a saved .nemo does not name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layer in self.encoder.layers:
            layer.mixer.memory.__class__ = SameStepMemory


class TwoGates(torch.nn.Module):
    """A read gate for the initial weights, and one for those learned, which begins closed."""

    def __init__(self, gate: torch.nn.Linear):
        super().__init__()
        self.initial, self.learned = gate, torch.nn.Linear(gate.in_features, gate.out_features)
        for parameter in self.learned.parameters():
            torch.nn.init.zeros_(parameter)
        self.which = 'initial'

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.which)(x)


class TwoReadsMemory(FastWeightMemory):
    """Reads its initial weights, and adds a read of those that it learned.

    So learning takes nothing away from what the weights of training do by themselves.
    """

    def forward(self, x, q, k, v, valid, cos, sin, adaptation, state, *args, **kwargs):
        # Frozen, `super` reads the weights of a state, if there is one: these are to be the initial ones.
        out, same = super().forward(x, q, k, v, valid, cos, sin, False, None, *args, **kwargs)
        if not adaptation:
            return out, state or same
        self.gate_proj.which = 'learned'
        more, state = super().forward(x, q, k, v, valid, cos, sin, True, state, *args, **kwargs)
        self.gate_proj.which = 'initial'
        return out + more, state


def read_twice(memory: FastWeightMemory) -> None:
    """Makes it a `TwoReadsMemory` with its gates."""
    memory.__class__, memory.gate_proj = TwoReadsMemory, TwoGates(memory.gate_proj)


def two_reads(encoder: torch.nn.Module) -> None:
    for layer in encoder.layers:
        read_twice(layer.mixer.memory)


class TwoReads(ScoredByReference):
    """With `TwoReadsMemory`, which a saved .nemo does not name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        two_reads(self.encoder)


class ForgetsInUse(Contestant):
    """Trained with a memory that keeps all it learns; used, and saved, with one that goes back towards its weights."""

    def on_train_end(self):
        super().on_train_end()
        for config in (self.encoder.config, self.cfg.encoder):
            config.lact_retention = LACT_CONFORMER['lact_retention']


class TwoViews(Contestant):
    """CR-CTC: each row twice, with other masks and dropout; the two shall say the same. Half the rows, for equal cost.

    CTC (and InterCTC) of both, and the symmetric KL divergence of their frames, per token like the CTC loss. A target
    gets no gradient. Source: arXiv 2410.05101.
    """

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_after_batch_transfer([part[::2] for part in batch], dataloader_idx)
        return tuple(torch.cat([part, part]) for part in batch)

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        if self.training:
            self.said = out[:2]
        return out

    def training_step(self, batch, batch_nb):
        out = super().training_step(batch, batch_nb)
        (log_probs, frames), self.said = self.said, None
        out['loss'] = out['loss'] + CONSISTENCY * disagreement(log_probs, frames) / (batch[3].sum() / 2)
        return out


def disagreement(log_probs: Tensor, frames: Tensor) -> Tensor:
    """Half the sum of KL(p || q) and KL(q || p) over valid frames of two views; the first of each is a fixed target.

    Args:
        log_probs: [2 B, T, V], the second view of row i in row B + i.
        frames: [2 B].
    """
    p, q = log_probs.float().chunk(2)
    inside = torch.arange(p.size(1), device=p.device) < frames.chunk(2)[0][:, None]  # [B, T]
    both = F.kl_div(q, p.detach(), reduction='none', log_target=True).sum(-1)
    both = both + F.kl_div(p, q.detach(), reduction='none', log_target=True).sum(-1)
    return 0.5 * both.masked_fill(~inside, 0.0).sum()


def but(**options) -> Recipe:
    """'LaCT-Conformer' with other encoder options."""
    return Recipe(LACT_CONFORMER | options, base=BASE)


DROPOUT = dict(dropout=0.1, dropout_pre_encoder=0.1, dropout_att=0.1)
CONFORMER_LIKE = dict(block_norm=True, use_bias=True, use_momentum=False, lact_retention=1.0)
STREAMING = dict(conv_context_size='causal', causal_downsampling=True)  # what lets LaCTEncoder stream in causal mode
ABLATIONS = {
    # Widths of the feed-forward make up for what a part takes or gives.
    'no convolution': but(conv_kernel_size=0, ff_expansion_factor=4.75),
    'no macaron': but(macaron=False, ff_expansion_factor=8),
    'no retention': but(lact_retention=1.0),
    'chunk 32': but(lact_chunk_size=32),
    'chunk 512': but(lact_chunk_size=512),
    'chunk jitter': replace(but(), model=ChunkJitter),
    'frozen at times': replace(but(), model=FrozenAtTimes),
    'window 16': but(att_context_size=[16, 16]),
    'window 16, memory not learning': but(att_context_size=[16, 16], adaptation=False),
    'window 128': but(att_context_size=[128, 128]),
    '1 memory head': but(num_lact_heads=1, ff_expansion_factor=3.75),
    '4 memory heads': but(num_lact_heads=4),
    'memory width 2': but(inter_multi=2.0, ff_expansion_factor=3.75),
    'Muon': but(use_muon=True, base_lr=0.001),
    'no momentum': but(use_momentum=False),
    'base_lr 0.001': but(base_lr=0.001),
    'rotary memory': but(ttt_nope=False),
    'same step for any evidence': replace(but(segment_frames=-1), model=SameStep),
    'two reads': replace(but(segment_frames=-1, use_momentum=False), model=TwoReads),
    'two reads, InterCTC 0.1': replace(but(segment_frames=-1, use_momentum=False), model=TwoReads, interctc=0.1),
    'two reads, InterCTC 0.5': replace(but(segment_frames=-1, use_momentum=False), model=TwoReads, interctc=0.5),
    'two reads, window 16': replace(
        but(segment_frames=-1, use_momentum=False, att_context_size=[16, 16]), model=TwoReads
    ),
    'norm after each block': but(block_norm=True),
    'biases': but(use_bias=True),
    'no long rows': replace(but(), kinds=dict(short=0.5, middle=0.5, long=0.0)),
    'more long rows': replace(but(), kinds=MORE_LONG),
    'causal': but(lact_mode='causal'),
    'causal, chunk 32': but(lact_mode='causal', lact_chunk_size=32),
    'causal, chunk 32, more long rows': replace(but(lact_mode='causal', lact_chunk_size=32), kinds=MORE_LONG),
    'streaming': but(lact_mode='causal', att_context_size=[64, 0], **STREAMING),
    'both modes': replace(but(**STREAMING), model=BothModes),
    'two windows': replace(
        but(lact_mode='causal', att_context_size=[[64, 64], [64, 0]], **STREAMING), model=TwoWindows
    ),
    'no InterCTC': replace(but(), interctc=0.0),
    'CR-CTC': replace(but(), model=TwoViews, time_masks=12),
    'masks of the mean': replace(but(), mask_value=MEL[0]),
    'dropout 0.1': but(**DROPOUT),
    'norm and biases': replace(but(**CONFORMER_LIKE), model=ForgetsInUse),
    'norm and biases, chunk 512': replace(but(**CONFORMER_LIKE, lact_chunk_size=512), model=ForgetsInUse),
    'norm and biases, dropout 0.1': replace(but(**CONFORMER_LIKE, **DROPOUT), model=ForgetsInUse),
    'norm and biases, memory not learning': but(**CONFORMER_LIKE, adaptation=False),
}  # fmt: skip
RECIPES = CONTESTANTS | ABLATIONS
