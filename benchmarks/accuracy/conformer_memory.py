"""'Conformer with memory': NeMo's encoder with local attention, and LaCT's memory beside the attention of each layer.

It asks whether LaCT-Conformer is behind for its attention and blocks or for its memory: with its gates closed this one
is 'FastConformer local'.
"""

from functools import partial

from ablation_contestants import RECIPES, ScoredByReference, read_twice
from contestants import CONTESTANTS, LACT_CONFORMER, Recipe
from torch import Tensor, nn

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory

MEMORY = LACT_CONFORMER | dict(num_lact_heads=4, use_momentum=False)  # 4 heads have half the weights of 2


class WithMemory(nn.Module):
    """An attention's output projection, and before it the read of a memory that shares the attention's q, k and v.

    Both reads begin closed.

    Args:
        attention: NeMo's, of relative positions.
        options: of LaCTEncoderConfig.
    """

    def __init__(self, attention: nn.Module, options: dict):
        super().__init__()
        self.linear, self.memory = attention.linear_out, FastWeightMemory(LaCTEncoderConfig.from_kwargs(**options))
        read_twice(self.memory)
        for parameter in self.memory.gate_proj.initial.parameters():
            nn.init.zeros_(parameter)
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
    """Gives NeMo's encoder its memories."""
    encoder.adaptation = True
    for layer in encoder.layers:
        layer.self_attn.linear_out = WithMemory(layer.self_attn, MEMORY | dict(d_model=encoder.d_model))
        layer.register_forward_pre_hook(partial(_tell, encoder), with_kwargs=True)


def _tell(encoder: nn.Module, layer: nn.Module, inputs: tuple, named: dict) -> None:
    beside = layer.self_attn.linear_out
    beside.adaptation, beside.valid = encoder.adaptation, ~named['pad_mask']


ALL = RECIPES | {
    'Conformer with memory': Recipe(CONTESTANTS['FastConformer local'].encoder, model=ConformerWithMemory)
}
