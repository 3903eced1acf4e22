"""Recording without a GPU: what stands around it."""

import contextlib
import gc

import pytest
import torch

from nemo_lact.ops import cuda_graphs


class Graph:
    def capture_begin(self, pool, capture_error_mode):
        self.recording = True

    def capture_end(self):
        self.recording = False


@pytest.fixture(autouse=True)
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', Graph)
    monkeypatch.setattr(torch.cuda, 'Stream', object)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)


def test_no_garbage_is_collected_while_recording():
    """A recording that is garbage, given back meanwhile, is an error of CUDA that ends the new one."""
    graph, collected = cuda_graphs.record(gc.isenabled)
    assert collected is False and gc.isenabled() and not graph.recording


def test_a_failed_recording_is_ended_and_garbage_collected_again():
    with pytest.raises(ZeroDivisionError):
        cuda_graphs.record(lambda: 1 / 0)
    assert gc.isenabled()


def test_a_program_without_a_collector_keeps_none():
    gc.disable()
    try:
        cuda_graphs.record(lambda: None)
        assert not gc.isenabled()
    finally:
        gc.enable()
