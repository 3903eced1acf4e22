"""One line of progress per validation, for logs and terminals without a progress bar."""

import time

from lightning.pytorch.callbacks import Callback


class PrintProgress(Callback):
    """Prints `epoch 12  step 390  loss 1.23  memory updates 1.7  validation WER 45.6%  2 min 13 s` at each validation.

    Lines come from the first process only, and none from the sanity check before training.
    """

    def on_fit_start(self, trainer, pl_module):
        self.started = time.monotonic()

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        seconds = round(time.monotonic() - self.started)
        metrics = trainer.callback_metrics
        line = f'epoch {trainer.current_epoch + 1:3d}  step {trainer.global_step:5d}'
        if 'train_loss' in metrics:
            line += f'  loss {float(metrics["train_loss"]):7.2f}'
        if 'memory_updates_per_utterance' in metrics:
            line += f'  memory updates {float(metrics["memory_updates_per_utterance"]):.1f}'
        if 'val_wer' in metrics:
            line += f'  validation WER {float(metrics["val_wer"]):6.1%}'
        print(f'{line}  {seconds // 60} min {seconds % 60:02d} s', flush=True)
