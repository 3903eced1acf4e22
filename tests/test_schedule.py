"""schedule.py: the learning rate comes down by the end of max_time, on a fast machine and on a slow one."""

import time

import lightning.pytorch as pl
import pytest
import torch
from nemo.core.optim.lr_scheduler import CosineAnnealing

from nemo_lact.schedule import EndWithTime

PEAK = 1.0


class Model(pl.LightningModule):
    """Keeps the learning rate of each step, step n of which takes `pause(n)` seconds."""

    def __init__(self, pause):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.pause, self.rates = pause, []

    def training_step(self, batch, _):
        time.sleep(self.pause(len(self.rates)))
        self.rates.append(self.optimizers().param_groups[0]['lr'])
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=PEAK)
        schedule = CosineAnnealing(optimizer, max_steps=100000, warmup_steps=10, min_lr=0.0)
        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


def rates(pause, **options):
    model = Model(pause)
    trainer = pl.Trainer(
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EndWithTime()],
        **{'max_epochs': 1, **options},
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(100000, 1)))
    return model.rates


@pytest.mark.parametrize(
    'pause',
    [lambda step: 0.005, lambda step: 0.02, lambda step: 0.005 if step < 100 else 0.02],
    ids=['fast', 'slow', 'slower in the middle'],
)
def test_rate_is_down_when_the_time_is_up(pause):
    found = rates(pause, max_time={'seconds': 4})
    assert len(found) > 60
    assert found[25] > 0.8 * PEAK
    assert found[-1] < 0.01 * PEAK
    assert sum(found) / len(found) == pytest.approx(0.5 * PEAK, abs=0.15)  # a cosine: neither held nor dropped early


def test_limits_of_the_trainer_come_first():
    found = rates(lambda step: 0.001, max_time={'seconds': 600}, max_steps=150, max_epochs=-1)
    assert len(found) == 150 and found[-1] < 0.01 * PEAK


def test_without_a_time_limit_the_schedule_is_left_alone():
    found = rates(lambda step: 0, max_steps=60)
    assert found[-1] > 0.99 * PEAK
