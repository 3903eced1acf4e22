"""What the upper half is told, and where a memory is needed: self-conditioned CTC, and memories in no or two layers.

'self-conditioned' contestants hear, after half of their layers, what InterCTC would say there (arXiv 2104.02724). 'no
memory' is LaCT's block without one; 'two memories' and 'late memories' have them in two of the eight layers, as
'few memories' do, 'early memories' in four, 'one memory' in one and 'open memories' in all, with projections of their
own. 'shared memories' are in the layers of 'few memories' and share the attention's.
"""

from ablation_contestants import RECIPES, ScoredByReference, TwoReads, TwoReadsMemory, read_twice
from conformer_memory import ALL as BEFORE
from contestants import LACT_CONFORMER, Contestant, Recipe
from torch import Tensor, nn

from nemo_lact.modules.fast_weights import FastWeightMemory
from nemo_lact.modules.lact_layer import LaCTMixer

OPEN = 0.5  # where the gates of late memories begin, before silu


class SelfConditioned(Contestant):
    """The upper half of the encoder hears the tokens' probabilities after the lower half, as InterCTC has them.

    Before another contestant among the bases it conditions that one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        condition(self)


def condition(model: Contestant) -> None:
    """Adds W p to what the upper half hears, p the probabilities that the decoder gives there; W begins with zeros."""
    encoder, decoder = model.encoder, model.decoder.decoder_layers
    normed = getattr(encoder, 'head', lambda x: x)  # NeMo's blocks end with a norm
    encoder.condition = nn.Linear(decoder[0].out_channels, encoder.d_model, bias=False)
    nn.init.zeros_(encoder.condition.weight)

    def told(x: Tensor) -> Tensor:
        said = decoder(normed(x).transpose(1, 2)).transpose(1, 2)  # [B, T, V + 1]
        return x + encoder.condition(said.float().softmax(-1)).to(x.dtype)

    def hook(layer: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        if 'x' in named:  # NeMo's layers
            return inputs, named | {'x': told(named['x'])}
        return (told(inputs[0]), *inputs[1:]), named

    encoder.layers[len(encoder.layers) // 2].register_forward_pre_hook(hook, with_kwargs=True)


class AttentionOnly(LaCTMixer):
    """A mixer without its memory."""

    def forward(self, x, valid, cos, sin, window, *rest) -> tuple[Tensor, None]:
        """As LaCTMixer's, without a state."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, T, D] each
        return self.out(self.near(q, k, v, valid, cos, sin, window)), None


def forget(mixer: LaCTMixer) -> None:
    mixer.__class__, mixer.memory = AttentionOnly, None


class OwnProjections:
    """A memory with queries, keys and values of its own instead of the attention's."""

    def forward(self, x, q, k, v, *rest):
        return super().forward(x, *self.own(x).chunk(3, dim=-1), *rest)


class OwnProjectionsMemory(OwnProjections, TwoReadsMemory):
    pass


class OpenMemory(OwnProjections, FastWeightMemory):
    """Reads once, with an output of its own too, through gates that begin open."""

    def forward(self, *args):
        out, state = super().forward(*args)
        return self.own_out(out), state


def separate(memory: FastWeightMemory, kind: type = OwnProjectionsMemory) -> None:
    width, bias = memory.config.d_model, memory.config.use_bias
    memory.__class__, memory.own = kind, nn.Linear(width, 3 * width, bias=bias)
    if kind is OpenMemory:
        memory.own_out = nn.Linear(width, width, bias=bias)
        nn.init.zeros_(memory.gate_proj.weight)
        nn.init.constant_(memory.gate_proj.bias, OPEN)


class NoMemory(ScoredByReference):
    """LaCT's blocks without memory, which a saved .nemo does not name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder.adaptation = False
        for layer in self.encoder.layers:
            forget(layer.mixer)


class NoMemoryConditioned(SelfConditioned, NoMemory):
    pass


class TwoReadsConditioned(SelfConditioned, TwoReads):
    pass


class SomeMemories(ScoredByReference):
    """Memories, with projections of their own, in some layers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        layers = self.encoder.layers
        kept = self.kept(len(layers))
        for index, layer in enumerate(layers):
            if index in kept:
                self.remade(layer.mixer.memory)
            else:
                forget(layer.mixer)


class TwoMemories(SomeMemories):
    """They read twice, in a layer of the lower and one of the upper half."""

    def kept(self, count: int) -> set[int]:
        return {count // 4, count * 5 // 8}

    def remade(self, memory: FastWeightMemory) -> None:
        read_twice(memory)
        separate(memory)


class LateMemories(SomeMemories):
    """In the two layers that come after half of them: they hear what the lower half says."""

    def kept(self, count: int) -> set[int]:
        return {count // 2, count // 2 + 1}

    def remade(self, memory: FastWeightMemory) -> None:
        separate(memory, OpenMemory)


class OpenMemories(LateMemories):
    """In all layers."""

    def kept(self, count: int) -> set[int]:
        return set(range(count))


class EarlyMemories(LateMemories):
    """In the layers of the first half."""

    def kept(self, count: int) -> set[int]:
        return set(range(count // 2))


class FewMemories(LateMemories):
    """In the third and fourth layer of eight, where those of 'early memories' are worth something."""

    def kept(self, count: int) -> set[int]:
        return {count // 4, count // 4 + 1}


class FewMemoriesConditioned(SelfConditioned, FewMemories):
    pass


class OneMemoryConditioned(SelfConditioned, LateMemories):
    """In the third layer of eight alone."""

    def kept(self, count: int) -> set[int]:
        return {count // 4}


class SharedConditioned(SelfConditioned, ScoredByReference):
    """The package's layers as they are."""


class OpenMemoriesConditioned(SelfConditioned, OpenMemories):
    pass


class EarlyMemoriesConditioned(SelfConditioned, EarlyMemories):
    pass


class TwoMemoriesConditioned(SelfConditioned, TwoMemories):
    pass


class LateMemoriesConditioned(SelfConditioned, LateMemories):
    pass


LOCAL, TWO_READS = (RECIPES[name].encoder for name in ('FastConformer local', 'two reads'))
WITHOUT = TWO_READS | dict(ff_expansion_factor=4.25)  # as wide as makes up for the memories
LASTING = TWO_READS | dict(lact_retention=0.95)  # what is learned lasts minutes, not half of one
LATE = TWO_READS | dict(lact_retention=0.97)
OPEN_ONES = TWO_READS | dict(lact_retention=0.9)  # as long as the rows of training are
SHARED = LACT_CONFORMER | dict(  # memories on attention's projections
    lact_layers=[2, 3], ff_expansion_factor=4.125, use_momentum=False, lact_retention=0.9
)
WHOLE = dict(segment_frames=-1)  # where kernels and segments know nothing of what the upper half is told
LONG_CHUNKS = SHARED | dict(lact_chunk_size=512, lact_retention=0.66)  # 41 s instead of 10, and it lasts as long
ALL = BEFORE | {
    'FastConformer local, self-conditioned': Recipe(LOCAL, model=SelfConditioned),
    'no memory': Recipe(WITHOUT, model=NoMemory),
    'no memory, self-conditioned': Recipe(WITHOUT, model=NoMemoryConditioned),
    'two memories, self-conditioned': Recipe(TWO_READS, model=TwoMemoriesConditioned),
    'two reads, self-conditioned': Recipe(TWO_READS, model=TwoReadsConditioned),
    'two lasting memories, self-conditioned': Recipe(LASTING, model=TwoMemoriesConditioned),
    'late memories': Recipe(LATE, model=LateMemories),
    'late memories, self-conditioned': Recipe(LATE, model=LateMemoriesConditioned),
    'open memories, self-conditioned': Recipe(OPEN_ONES | dict(ff_expansion_factor=3), model=OpenMemoriesConditioned),
    'few memories': Recipe(OPEN_ONES | dict(ff_expansion_factor=4), model=FewMemories),
    'one memory, self-conditioned': Recipe(OPEN_ONES | dict(ff_expansion_factor=4.125), model=OneMemoryConditioned),
    'shared memories': Recipe(SHARED),
    'shared memories, self-conditioned': Recipe(SHARED | WHOLE, model=SharedConditioned),
    'shared memories, long chunks': Recipe(LONG_CHUNKS),
    'shared memories in four layers, long chunks': Recipe(LONG_CHUNKS | dict(lact_layers=[1, 2, 3, 4])),
    'shared memories in all layers, long chunks': Recipe(
        LONG_CHUNKS | dict(lact_layers=None, ff_expansion_factor=4)
    ),
    'shared memories, long chunks, self-conditioned': Recipe(LONG_CHUNKS | WHOLE, model=SharedConditioned),
    'few memories, self-conditioned': Recipe(OPEN_ONES | dict(ff_expansion_factor=4), model=FewMemoriesConditioned),
    'early memories, self-conditioned': Recipe(
        OPEN_ONES | dict(ff_expansion_factor=3.5), model=EarlyMemoriesConditioned
    ),
    'two lasting reads, self-conditioned': Recipe(LASTING, model=TwoReadsConditioned),
}
