"""Memories put into a model that can hear already: what does training make of them there?

Into the starter model, which knows English:

    python benchmarks/accuracy/grafts.py CORPUS/tokenizer     # the starter's, so that its weights can go on
    python benchmarks/accuracy/train.py "starter, open memories above" --init starter --corpus CORPUS --output OUT

Or, 'grown', into a model without memory after half of its own training.

All are self-conditioned (conditioned.py), and their memories keep what they learn for minutes. 'Above' are the layers
after half of them.
"""

import argparse
import tarfile
from dataclasses import replace
from pathlib import Path

from ablation_contestants import ScoredByReference
from conditioned import ALL as BEFORE
from conditioned import (
    OPEN_ONES,
    AttentionOnly,
    EarlyMemories,
    FewMemories,
    OpenMemory,
    SelfConditioned,
    SomeMemories,
    forget,
    separate,
)
from contestants import LACT_CONFORMER, Recipe
from torch import nn

from nemo_lact.modules.fast_weights import FastWeightMemory
from nemo_lact.modules.lact_layer import LaCTMixer
from nemo_lact.starter import resolve

NARROW = (16, 16)  # frames of 80 ms


class OwnWindow(LaCTMixer):
    """A mixer whose attention hears `hears` whatever the encoder says."""

    def near(self, q, k, v, valid, cos, sin, window):
        return super().near(q, k, v, valid, cos, sin, self.hears)


def hear(mixer: LaCTMixer, window: tuple[int, int]) -> None:
    mixer.__class__, mixer.hears = OwnWindow, window


class MemoryAlone(LaCTMixer):
    """A mixer without its attention; the memory has projections of its own."""

    def forward(self, x, valid, cos, sin, window, adaptation, state, keep_state, learn=None, layout=None):
        """As LaCTMixer's."""
        learn = valid if learn is None else learn
        far, state = self.memory(x, None, None, None, learn, cos, sin, adaptation, state, keep_state, layout)
        return far.to(x.dtype), state


def leave_alone(mixer: LaCTMixer) -> None:
    """Takes the attention from a mixer with an `OpenMemory`."""
    mixer.__class__ = MemoryAlone
    mixer.qkv = mixer.q_norm = mixer.k_norm = mixer.out = None


def renew(mixer: LaCTMixer) -> None:
    """A new memory with open gates and projections of its own."""
    mixer.memory = FastWeightMemory(mixer.config)
    separate(mixer.memory, OpenMemory)


class Starter(SelfConditioned, ScoredByReference):
    """The starter model; `--init` gives it its weights, but for those that are new."""

    above = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        layers = self.encoder.layers
        before = dict(self.named_parameters())
        for index, layer in enumerate(layers):
            if index >= len(layers) // 2 or not self.above:
                self.change(index, layer.mixer)
        self.new = {name for name, p in self.named_parameters() if before.get(name) is not p}
        self.new.add('encoder.condition.weight')

    def change(self, index: int, mixer: LaCTMixer) -> None:
        """Of one layer, of those after half of them if `above`."""

    def load_state_dict(self, weights: dict, strict: bool = True, **kwargs):
        """Weights of the starter, or of a model like this.

        Raises:
            RuntimeError: a weight that is not new is missing.
        """
        if 'encoder.condition.weight' in weights:
            return super().load_state_dict(weights, strict, **kwargs)
        own = self.state_dict()
        both = {name: weights[name] for name in own if name in weights} | {name: own[name] for name in self.new}
        return super().load_state_dict(both)


class FullAbove(Starter):
    def change(self, index, mixer):
        hear(mixer, (-1, -1))


class NoneAbove(Starter):
    def change(self, index, mixer):
        forget(mixer)


class OpenAbove(Starter):
    def change(self, index, mixer):
        renew(mixer)


class OpenNarrowAbove(Starter):
    def change(self, index, mixer):
        renew(mixer)
        hear(mixer, NARROW)


class AloneAbove(Starter):
    """Above, memory and attention take turns."""

    def change(self, index, mixer):
        if index % 2:
            renew(mixer)
            leave_alone(mixer)
        else:
            forget(mixer)


class OpenEverywhere(OpenAbove):
    above = False


GROWN = 0.5  # of the planned steps are made without memory


class Sleeper(LaCTMixer):
    """A mixer whose memory is asleep at first."""

    awake = False

    def forward(self, *args):
        return super().forward(*args) if self.awake else AttentionOnly.forward(self, *args)


class Grown(SelfConditioned, SomeMemories):
    """Memories that wake up after half of the training, and change nothing before they have learned to."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sleepers = [layer.mixer for layer in self.encoder.layers if layer.mixer.memory is not None]
        for mixer in self.sleepers:
            mixer.__class__ = Sleeper
            nn.init.zeros_(mixer.memory.own_out.weight)

    def training_step(self, batch, batch_nb):
        self._wake(self.trainer.global_step >= GROWN * self.trainer.max_steps)
        return super().training_step(batch, batch_nb)

    def ways(self):
        def awake():
            self._wake(True)
            usual()

        (usual,) = super().ways().values()
        return {'': awake}

    def _wake(self, awake: bool) -> None:
        for mixer in self.sleepers:
            mixer.awake = awake


class GrownMemories(Grown, FewMemories):
    pass


class GrownEarlyMemories(Grown, EarlyMemories):
    pass


STARTER = Recipe(LACT_CONFORMER | dict(segment_frames=-1, use_momentum=False, lact_retention=0.97), model=Starter)
ALL = BEFORE | {
    'grown memories, self-conditioned': Recipe(OPEN_ONES | dict(ff_expansion_factor=3.75), model=GrownMemories),
    'grown early memories, self-conditioned': Recipe(
        OPEN_ONES | dict(ff_expansion_factor=3.5), model=GrownEarlyMemories
    ),
    'starter': STARTER,
    'starter, full attention above': replace(STARTER, model=FullAbove),
    'starter, no memories above': replace(STARTER, model=NoneAbove),
    'starter, open memories above': replace(STARTER, model=OpenAbove),
    'starter, open memories above, narrow windows': replace(STARTER, model=OpenNarrowAbove),
    'starter, memories alone above': replace(STARTER, model=AloneAbove),
    'starter, open memories': replace(STARTER, model=OpenEverywhere),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('tokenizer', type=Path, help='folder for it, as train.py reads it')
    folder = parser.parse_args().tokenizer
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(resolve('starter')) as archive:
        for member in archive:
            for file in ('tokenizer.model', 'vocab.txt'):
                if member.name.endswith(file):
                    (folder / file).write_bytes(archive.extractfile(member).read())


if __name__ == '__main__':
    main()
