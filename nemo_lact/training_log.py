"""What a training log should show of the memory: how often it was updated, and what CTC cannot learn from.

`nemo-lact train` adds this callback. With a NeMo script: `trainer.callbacks.append(MemoryLog())` after the Trainer is
made (NeMo's guard lets no foreign callback into a config).
"""

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class MemoryLog(Callback):
    """Logs for every training batch, by Lightning's logger:

    memory_updates_per_utterance   mean over the batch of the updates of the fast-weight memory; a memory that never
                                   sees a second chunk is never trained to be used
    memory_updates_least, _most    the smallest and largest of them
    ctc_infeasible_share           share of utterances whose text needs more encoder frames than there are: their CTC
                                   loss is infinite and counts as 0

    Models whose encoder has no `lact_chunk_size` are logged without updates.
    """

    def __init__(self):
        self._lengths = self._hook = None

    def on_fit_start(self, trainer, pl_module):
        encoder = getattr(pl_module, 'encoder', None)
        if encoder is not None:
            self._hook = encoder.register_forward_hook(self._keep_lengths)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        lengths, self._lengths = self._lengths, None
        if lengths is None:
            return
        found = {}
        config = getattr(pl_module.encoder, 'config', None)
        if hasattr(config, 'lact_chunk_size'):
            updates = memory_updates(lengths, config.lact_chunk_size) * bool(pl_module.encoder.adaptation)
            found = {
                'memory_updates_per_utterance': updates.float().mean(),
                'memory_updates_least': updates.min().float(),
                'memory_updates_most': updates.max().float(),
            }
        if isinstance(batch, (tuple, list)) and len(batch) >= 4:  # signal, its lengths, tokens, their lengths
            found['ctc_infeasible_share'] = infeasible(batch[2], batch[3], lengths).float().mean()
        self.log_dict(found, on_step=True, on_epoch=False, batch_size=len(lengths))

    def on_fit_end(self, trainer, pl_module):
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _keep_lengths(self, encoder, args, output):
        if encoder.training:
            self._lengths = output[1].detach()


def memory_updates(lengths: Tensor, chunk: int) -> Tensor:
    """Updates [B] of the memory in rows of so many encoder frames [B]: one per chunk, the last may be shorter."""
    return (lengths + chunk - 1) // chunk


def infeasible(tokens: Tensor, token_lengths: Tensor, frames: Tensor) -> Tensor:
    """Rows [B] that CTC cannot align: tokens [B, L] and blanks between equal neighbours need more frames [B]."""
    inner = torch.arange(1, tokens.size(1), device=tokens.device) < token_lengths[:, None]
    repeats = ((tokens[:, 1:] == tokens[:, :-1]) & inner).sum(1)
    return token_lengths + repeats > frames
