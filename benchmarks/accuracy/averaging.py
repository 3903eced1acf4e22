"""An exponential moving average of the weights, beside the training."""

import lightning.pytorch as pl
import torch


class Average(pl.Callback):
    """Encoder and decoder averaged after every step; buffers are those of the last step.

    Args:
        decay: of the average. At step n it is (1 + n) / (10 + n) where that is less: the first weights must not stay
            in the average of a short run.
    """

    def __init__(self, decay: float):
        self.decay, self.average, self.steps = decay, None, 0

    def on_train_start(self, trainer, model):
        self.average = [weight.detach().clone() for weight in _weights(model)]

    @torch.no_grad()
    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        n = self.steps = self.steps + 1
        share = 1 - min(self.decay, (1 + n) / (10 + n)) if n > 1 else 1.0
        torch._foreach_lerp_(self.average, [weight.detach() for weight in _weights(model)], share)

    @torch.no_grad()
    def give(self, model) -> None:
        """The averaged weights to the model."""
        for weight, averaged in zip(_weights(model), self.average, strict=True):
            weight.copy_(averaged)


def _weights(model) -> list[torch.nn.Parameter]:
    return [*model.encoder.parameters(), *model.decoder.parameters()]
