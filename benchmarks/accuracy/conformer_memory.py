"""'Conformer with memory': NeMo's encoder with local attention, and LaCT's memory beside the attention of each layer.

It asks whether LaCT-Conformer is behind for its attention and blocks or for its memory: with its gates closed this one
is 'FastConformer local'.
"""

from functools import partial

from ablation_contestants import RECIPES, ScoredByReference, TwoGates, TwoReadsMemory
from contestants import CONFORMER, CONTESTANTS, Recipe
from torch import Tensor, nn

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory

MEMORY = dict(
    d_model=CONFORMER['d_model'], n_heads=CONFORMER['n_heads'], num_lact_heads=4, lact_chunk_size=128, use_muon=False,
    use_momentum=False, base_lr=0.05, lact_retention=0.8, segment_frames=-1,
)  # fmt: skip


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
        self.memory.__class__, self.memory.gate_proj = TwoReadsMemory, TwoGates(self.memory.gate_proj)
        for parameter in self.memory.gate_proj.initial.parameters():
            nn.init.zeros_(parameter)
        self.heard, self.valid, self.adaptation = {}, None, True
        for name in 'qkv':
            getattr(attention, f'linear_{name}').register_forward_hook(partial(self._hear, name))

    def _hear(self, name: str, linear: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        self.heard |= {name: out, f'{name} of': inputs[0]}

    def forward(self, near: Tensor) -> Tensor:
        """Attention [B, T, D] -> [B, T, D]."""
        heard, self.heard = self.heard, {}
        far, _ = self.memory(
            heard['q of'], heard['q'], heard['k'], heard['v'], self.valid, None, None, self.adaptation, None, False
        )
        return self.linear(near + far.to(near.dtype))


class ConformerWithMemory(ScoredByReference):
    """NeMo's model; `encoder.adaptation` says whether the memories learn. A saved .nemo does not name them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.remember()

    def remember(self) -> None:
        """Gives the encoder its memories."""
        self.encoder.adaptation = True
        width = self.encoder.d_model
        for layer in self.encoder.layers:
            layer.self_attn.linear_out = WithMemory(layer.self_attn, MEMORY | dict(d_model=width))
            layer.register_forward_pre_hook(partial(_tell, self.encoder), with_kwargs=True)


def _tell(encoder: nn.Module, layer: nn.Module, inputs: tuple, named: dict) -> None:
    beside = layer.self_attn.linear_out
    beside.adaptation, beside.valid = encoder.adaptation, ~named['pad_mask']


ALL = RECIPES | {
    'Conformer with memory': Recipe(CONTESTANTS['FastConformer local'].encoder, model=ConformerWithMemory)
}
