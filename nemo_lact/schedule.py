"""A learning rate that has come down when the time is up."""

import time

from lightning.pytorch.callbacks import Callback, Timer

FIRST_STEPS = 20  # slower than the others: memory is being allocated


class EndWithTime(Callback):
    """Moves the end of the learning rate schedule to where `trainer.max_time` will stop the training.

    A schedule counts steps, and how many of them fit into some minutes depends on the machine and on what else runs
    there. So the number is estimated again at every step, from the time left and the steps done so far. The schedule
    ends no later than max_steps or max_epochs of the trainer. Without max_time it stays as it is, and so does one that
    counts no `max_steps`.
    """

    def on_fit_start(self, trainer, pl_module):
        self.timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)
        self.began = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        left = self.timer and self.timer.time_remaining()
        if left is None:
            return
        if self.began is None:
            self.began = (trainer.global_step, time.monotonic())
        steps = trainer.global_step - self.began[0]
        if steps < FIRST_STEPS:
            return
        end = trainer.global_step + steps * left / (time.monotonic() - self.began[1])
        limit = trainer.estimated_stepping_batches  # -1 or infinite: none
        if limit > 0:
            end = min(end, limit)
        for config in trainer.lr_scheduler_configs:
            if getattr(config.scheduler, 'max_steps', None) is not None:
                config.scheduler.max_steps = max(int(end), trainer.global_step + 1)
