"""An exponential moving average of the weights, beside the training."""

import lightning.pytorch as pl
import torch
from torch.optim.swa_utils import AveragedModel


class Average(pl.Callback):
    """Encoder and decoder averaged after every step; buffers are those of the last step.

    Args:
        decay: of the average. At step n it is (1 + n) / (10 + n) where that is less: the first weights must not stay
            in the average of a short run.
    """

    def __init__(self, decay: float):
        self.decay, self.average, self.steps = decay, None, 0

    def on_train_start(self, trainer, model):
        self.average = AveragedModel(_parts(model), multi_avg_fn=self._step)

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.average.update_parameters(_parts(model))
        self.steps += 1

    @torch.no_grad()
    def _step(self, average, current, _) -> None:
        n = self.steps  # and not torch's count, which is on the GPU: to read it would wait for the step to end
        torch._foreach_lerp_(average, current, 1 - min(self.decay, (1 + n) / (10 + n)))

    def give(self, model) -> None:
        """The averaged weights to the model."""
        _parts(model).load_state_dict(self.average.module.state_dict())


def _parts(model) -> torch.nn.ModuleList:
    return torch.nn.ModuleList([model.encoder, model.decoder])
