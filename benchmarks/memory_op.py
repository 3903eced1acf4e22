"""The memory alone on a GPU: reference and fast version, and upstream LaCT's two where a checkout is given.

    python benchmarks/memory_op.py --output benchmarks/results/memory_op.json
    git clone https://github.com/a1600012888/LaCT && python benchmarks/memory_op.py --upstream LaCT

128 heads of 192 × 192 (32 rows of 4 heads), chunk 512, Muon and momentum, causal order as upstream; forward, and
forward with backward, over 1 and 4 chunks. The share is of a large bf16 product's rate, and counts Newton-Schulz's full
products. Upstream computes Newton-Schulz in bf16 and is run, not checked: its update differs (docs/design.md). It does
not learn from the last chunk: it is given 16 frames more, so that it learns from as many chunks. Its PyTorch version is
compiled as it comes, before its first turn; of its Triton version only the inner function: compiled as a whole, its
kernels are handed an epsilon in float64, which Triton refuses (torch 2.11).
"""

import argparse
import importlib
import json
import shlex
import statistics
import sys
from datetime import date
from pathlib import Path

import torch
from speed import ceiling, clock, commit

from nemo_lact.ops import FastWeights, fast, lact_swiglu_reference, row_length

ROWS, HEADS, WIDTH, CHUNK = 32, 4, 192, 512
WHO = ('reference', 'fast', 'upstream', 'upstream Triton')
MORE = 16  # frames for upstream, which does not learn from the last chunk


def arguments(chunks: int) -> dict:
    """Arguments of the memory as the encoder makes them; all that has a gradient in the encoder asks for one."""
    torch.manual_seed(0)
    shape = (ROWS, chunks * CHUNK, HEADS, WIDTH)

    def frames(unit: bool):
        x = torch.nn.functional.silu(torch.randn(shape, device='cuda'))
        x = torch.nn.functional.normalize(x, dim=-1) if unit else x
        return x.bfloat16().transpose(1, 2).detach().requires_grad_()

    initial = [torch.randn(HEADS, WIDTH, WIDTH, device='cuda').div(WIDTH**0.5).requires_grad_() for _ in range(3)]
    zeros = torch.zeros(1, HEADS, WIDTH, WIDTH, device='cuda').expand(ROWS, -1, -1, -1)
    step = (0.001 * (1 + torch.rand(ROWS, HEADS, shape[1], 3, 1, device='cuda'))).requires_grad_()
    return dict(
        q=frames(True), k=frames(True), v=frames(False), eta=step,
        mu=torch.rand(ROWS, HEADS, shape[1], device='cuda').requires_grad_(),
        valid=torch.ones(ROWS, shape[1], dtype=torch.bool, device='cuda'),
        weights=FastWeights(*(w.expand(ROWS, -1, -1, -1) for w in initial)), momentum=FastWeights(zeros, zeros, zeros),
        lengths=FastWeights(*(row_length(w.detach()) for w in initial)), chunk_size=CHUNK, mode='causal',
    )  # fmt: skip


def ours(function, args: dict):
    leaves = [args[n] for n in ('q', 'k', 'v', 'eta', 'mu')] + list(args['weights'])
    return lambda: function(**args)[0], leaves


def upstream(folder: Path, module: str, name: str, args: dict):
    """The same sizes and `MORE` frames through a function of an upstream checkout, [B · H, T, d]."""
    sys.path.insert(0, str(folder / 'lact_llm' / 'lact_model'))  # not as a package: that needs transformers and FLA
    loaded = importlib.import_module(module)

    def leaf(x):
        return x.detach().flatten(0, 1).contiguous().requires_grad_()

    def frames(x):
        return leaf(torch.cat((x, x[:, :, :MORE]), dim=2))

    weights = [leaf(w) for w in args['weights']]
    q, k, v = (frames(args[n]) for n in 'qkv')
    steps = [frames(args['eta'][..., i, :]) for i in range(3)]
    mu = frames(args['mu'][..., None])
    function = getattr(loaded, name)
    if 'triton' in name:
        function = getattr(function, '_torchdynamo_orig_callable', function)
    leaves = [q, k, v, *steps, mu, *weights]
    return lambda: function(*weights, q, k, v, *steps, chunk_size=CHUNK, use_muon=True, momentum=mu), leaves


def once(function, leaves: list, backward: bool) -> None:
    with torch.set_grad_enabled(backward):
        out = function()
    if backward:  # one chunk in causal order is read before it is learned: not every leaf has a gradient
        torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)


def work(chunks: int) -> float:
    """TFLOP forward: six products of the gradient and three of the read a frame, 15 of Newton-Schulz a matrix."""
    frame = 9 * 2 * WIDTH**2 * CHUNK
    return ROWS * HEADS * chunks * (frame + 3 * 15 * 2 * WIDTH**3) / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--upstream', type=Path, help='a checkout of github.com/a1600012888/LaCT')
    parser.add_argument('--chunks', type=int, nargs='*', default=[1, 4])
    parser.add_argument('--who', nargs='*', choices=WHO, default=WHO, help='upstream Triton tunes for minutes')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--commit', help='what to record where there is no git checkout')
    parser.add_argument('--output', type=Path)
    args = parser.parse_args()
    report = dict(device=torch.cuda.get_device_name(), date=date.today().isoformat(), commit=args.commit or commit(),
                  ceiling_tflops=ceiling(), command=shlex.join(['python', *sys.argv]), rows=[])  # fmt: skip
    for chunks in args.chunks:
        torch._dynamo.reset()  # upstream for these sizes, not for any
        data = arguments(chunks)
        runs = {'reference': ours(lact_swiglu_reference, data), 'fast': ours(fast.lact_swiglu_fast, data)}
        with torch.no_grad():
            exact = lact_swiglu_reference(**{**data, **{n: data[n].float() for n in 'qkv'}})[0]
            error = ((runs['fast'][0]().float() - exact).norm() / exact.norm()).item()
        if not error < 3e-2:
            raise SystemExit(f'the fast memory is {error:.2e} off the reference, over 3e-2: not worth timing')
        if args.upstream:
            names = {'upstream': ('ttt_operation', 'block_causal_lact_swiglu')}
            kernel = 'postnorm_block_causal_lact_swiglu_fused_kernel_triton'
            names['upstream Triton'] = ('ttt_operation_fused_kernel', kernel)
            runs |= {who: upstream(args.upstream, *names[who], data) for who in names if who in args.who}
        runs = {who: run for who, run in runs.items() if who in args.who}
        for backward in (False, True):
            times = {who: [] for who in runs}
            for turn in range(args.rounds + 3):
                for who, (function, leaves) in runs.items():
                    took = clock(lambda f=function, x=leaves, b=backward: once(f, x, b))
                    times[who] += [took] if turn >= 3 else []
            for who, took in times.items():
                ms = statistics.median(took)
                share = work(chunks) * (3 if backward else 1) / ms * 1000 / report['ceiling_tflops']
                row = dict(chunks=chunks, backward=backward, who=who, ms=ms, least=min(took), most=max(took))
                report['rows'].append({**row, 'share_of_ceiling': share})
                how = 'with' if backward else 'no'
                print(f'{chunks} chunks, {how} backward, {who:16s} {ms:8.3f} ms {share:.0%}', flush=True)
            if args.output:  # a run cut short keeps what it has
                args.output.write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
