"""Train one contestant in NeMo's own loop on a corpus of corpus.py, and score it.

    python benchmarks/accuracy/train.py "LaCT-Conformer" --corpus CORPUS --steps 3000 --output OUT
"""

import argparse
import json
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from ablation_tables import AVERAGED
from ablations import Run
from averaging import Average
from contestants import centre, config, tokenizer
from corpus import load
from feed import Batches
from grafts import ALL
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf
from score import plan, score

from nemo_lact import ops
from nemo_lact.info import config_and_weights
from nemo_lact.modules.fast_weights import FastWeightMemory
from nemo_lact.modules.wave_step import fast_memory_problem
from nemo_lact.schedule import EndWithTime
from nemo_lact.starter import resolve


class Clock(pl.Callback):
    """Loss and speed, every so many steps."""

    def __init__(self, every: int):
        self.every, self.history, self.losses = every, [], []

    def on_train_start(self, trainer, model):
        self.began = self.last = time.monotonic()

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.losses.append(outputs['loss'].detach())
        step, now = trainer.global_step, time.monotonic()
        if step % self.every == 0:
            loss = torch.stack(self.losses).float().mean().item()
            busy = torch.cuda.utilization() if torch.cuda.is_available() else None
            seconds = (now - self.last) / len(self.losses)
            self.history.append(dict(step=step, loss=loss, step_seconds=seconds, at=now - self.began, gpu_busy=busy))
            print(f'{step:6d} loss {loss:8.3f}  {1000 * seconds:6.0f} ms a step  GPU {busy}%', flush=True)
            self.losses, self.last = [], now


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('contestant', choices=list(ALL), metavar='contestant', help='; '.join(ALL))
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--steps', type=int, default=3000, help='0: score --init as it is')
    parser.add_argument('--minutes', type=float, default=10.0, help='of speech in a batch')
    parser.add_argument('--longest', type=float, default=40.0, help='seconds of the longest training rows')
    parser.add_argument('--kinds', nargs='*', default=[], help='shares of the rows, e.g. short=0.2 middle=0.2 long=0.6')
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--limit', type=int, help='seconds of training; if too few for the steps, the schedule ends with them'
    )
    parser.add_argument('--workers', type=int, default=3)
    parser.add_argument('--weights', nargs='*', default=[], help='source=factor')
    parser.add_argument('--leave-out', nargs='*', default=[], help='sources not to train on')
    parser.add_argument('--encoder', nargs='*', default=[], help='overrides, e.g. n_layers=2')
    parser.add_argument('--compile', action='store_true', help='compile=true for LaCT; NeMo has no such option')
    parser.add_argument('--init', type=Path, help='a .nemo of the same contestant and tokenizer, or starter')
    parser.add_argument('--save', action='store_true', help='the model as .nemo')
    parser.add_argument('--ema', action='store_true', help='average the weights too, and score the average too')
    parser.add_argument('--ema-decay', type=float, default=0.999)
    parser.add_argument('--sets', nargs='*', default=[], help='test sets to score, or how their names begin')
    parser.add_argument('--not-frozen', action='store_true', help='do not score a memory also frozen')
    parser.add_argument('--score-seconds', type=float, default=1e9, help='of each test set at most')
    args = parser.parse_args()
    try:
        plan(args.corpus, args.sets)
    except ValueError as wrong:
        parser.error(f'--sets: {wrong}')
    if not args.steps and not args.init:
        parser.error('--steps 0 scores a model; say which with --init MODEL.nemo')
    return args


def memory_that_can_run(encoder, device) -> str:
    """Takes back NEMO_LACT_OPS=fast where the kernels cannot run; returns what does."""
    memory = next((m for m in encoder.modules() if isinstance(m, FastWeightMemory)), None)
    if memory is not None and ops.implementation() == 'fast':
        problem = fast_memory_problem(memory.config, memory, torch.bfloat16, torch.device(device))
        if problem:
            print(f'the fast memory cannot run: {problem}. So NEMO_LACT_OPS=auto', flush=True)
            ops.use_implementation('auto')
    return ops.implementation()


def shares(pairs: list[str]) -> dict[str, float]:
    """Of 'name=number' each."""
    return {name: float(value) for name, value in (pair.split('=') for pair in pairs)}


def main() -> None:
    args = parsed()
    pl.seed_everything(args.seed)
    recipe = ALL[args.contestant]
    rows = [row for row in load(args.corpus, 'train') if row['source'] not in args.leave_out]
    texts = sorted({row['text'] for row in load(args.corpus, 'train')})
    encoder = OmegaConf.to_container(OmegaConf.merge(recipe.encoder, OmegaConf.from_dotlist(args.encoder)))
    if args.compile and 'LaCTEncoder' in encoder['_target_']:
        encoder['compile'] = True
    cfg = config(recipe, encoder, tokenizer(texts, args.corpus / 'tokenizer'), args.lr, args.steps)
    gpu = torch.cuda.is_available()
    clock = Clock(every=max(1, min(100, args.steps // 10)))
    average = Average(args.ema_decay) if args.ema else None
    trainer = pl.Trainer(
        accelerator='gpu' if gpu else 'cpu', devices=1, precision='bf16-mixed' if gpu else 32, max_steps=args.steps,
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[clock, EndWithTime(), *([average] if average else [])],
        max_time=dict(seconds=args.limit) if args.limit else None,
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False, log_every_n_steps=10**9,
    )  # fmt: skip
    model = recipe.model(cfg, trainer=trainer)
    centre(model)
    if args.init:
        model.load_state_dict(config_and_weights(resolve(args.init))[1])
    memory = memory_that_can_run(model.encoder, 'cuda' if gpu else 'cpu')
    weights, kinds = shares(args.weights), shares(args.kinds) or recipe.kinds
    took = 0.0
    if args.steps:
        tokens = [model.tokenizer.text_to_ids(row['text']) for row in rows]
        batches = Batches(rows, tokens, args.steps, args.minutes, weights, args.longest, args.seed, kinds)
        ahead = 4 if args.workers else None
        model._train_dl = torch.utils.data.DataLoader(
            batches, batch_size=None, num_workers=args.workers, pin_memory=gpu, prefetch_factor=ahead
        )
        began = time.monotonic()
        trainer.fit(model)
        took = time.monotonic() - began
    model.eval().to('cuda' if gpu else 'cpu')
    if gpu:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()  # others may train on it
    if encoder.get('compile'):  # scoring meets each shape once
        model.encoder.config.compile = model.cfg.encoder.compile = False
    name = Run(args.contestant, args.seed).name
    args.output.mkdir(parents=True, exist_ok=True)
    if args.save:  # in half precision, which NeMo restores into fp32
        model.encoder.half(), model.decoder.half()
        model.cfg.target = f'{EncDecCTCModelBPE.__module__}.{EncDecCTCModelBPE.__name__}'
        model.save_to(str(args.output / f'{name}.nemo'))
        model.float()
    report = dict(
        contestant=args.contestant, base=recipe.base, parameters=sum(p.numel() for p in model.parameters()),
        steps=trainer.global_step, planned_steps=args.steps, train_seconds=took, seed=args.seed, minutes=args.minutes,
        longest=args.longest, lr=args.lr, overrides=args.encoder, weights=weights, kinds=kinds, memory=memory,
        sources=sorted({row['source'] for row in rows}),
        hours=sum(row['samples'] for row in rows) / 16000 / 3600, log=clock.history,
        gpu_gib=torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        device=torch.cuda.get_device_name() if gpu else 'cpu', scores={}, passes={},
    )  # fmt: skip

    def scored(way: str, set_up, frozen: bool = not args.not_frozen) -> None:
        def keep(scores):
            report.update({'scores': scores} if not way else {'passes': report['passes'] | {way: scores}})
            part = args.output / f'{name}.part'  # the run may be ended at any moment
            part.write_text(json.dumps(report))
            part.replace(args.output / f'{name}.json')

        print(f'--- {way}' if way else '---', flush=True)
        set_up()
        score(model, args.corpus, args.score_seconds, keep, args.sets, frozen)

    for way, set_up in model.ways().items():
        scored(way, set_up)
    if average:
        average.give(model)
        scored(AVERAGED, model.ways()[''], frozen=False)


if __name__ == '__main__':
    main()
