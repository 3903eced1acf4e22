"""Two processes on the CPU: every weight takes part, ranks stay equal, the loss falls."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def worker(rank, port, options, results):
    from nemo_lact.modules import LaCTEncoder

    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    torch.manual_seed(0)
    encoder = LaCTEncoder(**options).train()
    # DDP raises on the second step if a weight got no gradient in the first.
    model = torch.nn.parallel.DistributedDataParallel(encoder)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    torch.manual_seed(1 + rank)
    signal, lengths = torch.randn(2, 16, 80 + 40 * rank), torch.tensor([80, 50 + rank])
    losses = []
    for _ in range(6):
        out, _ = model(audio_signal=signal, length=lengths)
        loss = (out - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weights = torch.cat([p.detach().flatten() for p in encoder.parameters()])
    other = weights.clone()
    dist.broadcast(other, src=0)
    results.put((rank, losses, bool(torch.equal(weights, other))))
    dist.barrier()
    # DDP must not be the last to hold the group: torch then joins gloo's thread while it has Python's lock, for which
    # that thread may wait.
    del model, out, loss
    dist.destroy_process_group()


@pytest.mark.parametrize(
    'extra',
    [{}, dict(lact_mode='causal'), dict(adaptation=False), dict(stochastic_depth_drop_prob=0.5, conv_kernel_size=5)],
    ids=str,
)
def test_two_processes(tiny, extra):
    # Rows of at most 30 frames and chunks of 64: in causal order nothing read was learned before.
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    results = mp.get_context('spawn').SimpleQueue()
    mp.spawn(worker, (port, {**tiny, 'lact_chunk_size': 64, **extra}, results), nprocs=2)
    for _ in range(2):
        _, losses, equal = results.get()
        assert equal and losses[-1] < losses[0]
