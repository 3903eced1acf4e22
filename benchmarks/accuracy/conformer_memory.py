"""Where LaCT-Conformer falls behind: LaCT's memory in NeMo's blocks, and NeMo's attention in LaCT's blocks.

'Conformer with memory' is NeMo's encoder with local attention, and the memory beside the attention of each layer: with
its gates closed it is 'FastConformer local'. 'two reads, relative positions' is 'two reads' with NeMo's attention.
"""

from functools import partial

import torch
from ablation_contestants import RECIPES, ScoredByReference, TwoReads, read_twice
from contestants import CONTESTANTS, LACT_CONFORMER, Recipe
from nemo.collections.asr.parts.submodules.multi_head_attention import (
    LocalAttRelPositionalEncoding,
    RelPositionMultiHeadAttentionLongformer,
)
from torch import Tensor, nn

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory
from nemo_lact.modules.lact_layer import LaCTMixer

MEMORY = LACT_CONFORMER | dict(num_lact_heads=4, use_momentum=False)  # 4 heads have half the weights of 2


class WithMemory(nn.Module):
    """An attention's output projection, and before it the read of a memory that shares the attention's q, k and v.

    Args:
        attention: NeMo's, of relative positions.
        memory: reads twice.
    """

    def __init__(self, attention: nn.Module, memory: FastWeightMemory):
        super().__init__()
        self.linear, self.memory = attention.linear_out, memory
        self.heard, self.valid, self.adaptation = {}, None, True
        for name in 'qkv':
            getattr(attention, f'linear_{name}').register_forward_hook(partial(self._hear, name))

    def _hear(self, name: str, linear: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        self.heard |= {name: out, 'x': inputs[0]}

    def forward(self, near: Tensor) -> Tensor:
        """Attention [B, T, D] -> [B, T, D]."""
        heard, self.heard = self.heard, {}
        far, _ = self.memory(
            heard['x'], heard['q'], heard['k'], heard['v'], self.valid, None, None, self.adaptation, None, False
        )
        return self.linear(near + far.to(near.dtype))


class ConformerWithMemory(ScoredByReference):
    """NeMo's model; `encoder.adaptation` says whether the memories learn. A saved .nemo does not name them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        remember(self.encoder)


def remember(encoder: nn.Module) -> None:
    """Gives NeMo's encoder its memories, whose reads begin closed."""
    encoder.adaptation = True
    for layer in encoder.layers:
        memory = FastWeightMemory(LaCTEncoderConfig.from_kwargs(**MEMORY | dict(d_model=encoder.d_model)))
        read_twice(memory)
        for parameter in memory.gate_proj.initial.parameters():
            nn.init.zeros_(parameter)
        layer.self_attn.linear_out = WithMemory(layer.self_attn, memory)
        layer.register_forward_pre_hook(partial(_tell, encoder), with_kwargs=True)


def _tell(encoder: nn.Module, layer: nn.Module, inputs: tuple, named: dict) -> None:
    beside = layer.self_attn.linear_out
    beside.adaptation, beside.valid = encoder.adaptation, ~named['pad_mask']


class NemoAttention(nn.Module):
    """In place of a `LaCTMixer` and around its memory: NeMo's local attention, positions as in Transformer-XL."""

    def __init__(self, mixer: LaCTMixer):
        super().__init__()
        config = mixer.config
        window = list(config.window)
        self.positions = LocalAttRelPositionalEncoding(window, d_model=config.d_model, dropout_rate=0.0)
        self.positions.extend_pe(0, 'cpu', torch.float32)
        self.attention = RelPositionMultiHeadAttentionLongformer(
            config.n_heads, config.d_model, config.dropout_att, None, None, window
        )
        self.attention.linear_out = WithMemory(self.attention, mixer.memory)

    @property
    def memory(self) -> FastWeightMemory:
        return self.attention.linear_out.memory

    @torch.compiler.disable
    def forward(self, x, valid, cos, sin, window, adaptation, *rest) -> tuple[Tensor, None]:
        """As LaCTMixer's, without a state."""
        beside = self.attention.linear_out
        beside.adaptation, beside.valid = adaptation, valid
        return self.attention(x, x, x, ~valid, self.positions(x)[1]), None


class RelativePositions(TwoReads):
    """'two reads' with `NemoAttention`, which a saved .nemo does not name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for layer in self.encoder.layers:
            layer.mixer = NemoAttention(layer.mixer)


ALL = RECIPES | {
    'Conformer with memory': Recipe(CONTESTANTS['FastConformer local'].encoder, model=ConformerWithMemory),
    'two reads, relative positions': Recipe(RECIPES['two reads'].encoder, model=RelativePositions),
}
