"""Shared fixtures, and the table of the contracts' largest differences that closes every run."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before Triton is imported: the kernels' tests run in Python
    if importlib.util.find_spec('triton'):
        import interpreter

        interpreter.patch_once_a_launch()

_MEASURED = {}  # contract -> (largest difference, bound)


@pytest.fixture
def contract(request):
    """`contract(name, difference, bound)` asserts difference <= bound and keeps the largest for the summary."""

    def check(name: str, difference: float, bound: float) -> None:
        difference = float(difference)
        request.node.user_properties.append(('contract', (name, difference, bound)))  # reported, by workers too
        assert difference <= bound, f'{name}: {difference:.3g} is over the bound of {bound:g}'

    return check


def pytest_runtest_logreport(report):
    if report.when == 'call':
        for kind, value in report.user_properties:
            if kind == 'contract':
                name, difference, bound = value
                _MEASURED[name] = (max(difference, _MEASURED.get(name, (0.0, bound))[0]), bound)


def pytest_terminal_summary(terminalreporter):
    if not _MEASURED:
        return
    terminalreporter.section("contracts: largest difference measured")
    width = max(map(len, _MEASURED))
    for name, (difference, bound) in sorted(_MEASURED.items()):
        terminalreporter.write_line(f'{name:<{width}}  {difference:9.2e}  (bound {bound:g})')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """Options of an encoder that runs in milliseconds and still has several chunks in 5 s of features."""
    return dict(
        feat_in=16,
        d_model=32,
        n_layers=2,
        n_heads=4,
        num_lact_heads=2,
        subsampling_factor=4,
        subsampling_conv_channels=8,
        att_context_size=[8, 8],
        lact_chunk_size=24,
        dropout=0.0,
        dropout_pre_encoder=0.0,
    )
