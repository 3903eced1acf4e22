"""A layer by kernels against its modules. On a GPU, or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip('triton')

from nemo_lact.modules import LaCTEncoder  # noqa: E402
from nemo_lact.modules.fused_layer import fused_layer, why_not_fused  # noqa: E402
from nemo_lact.modules.stacked_layers import stacked_layers  # noqa: E402
from nemo_lact.ops import fast, rotary_tables  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if not GPU and not fast.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)


@torch.no_grad()
@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(macaron=True, conv_kernel_size=5, use_bias=True, block_norm=True),
        dict(lact_mode='causal', use_momentum=False),
        dict(lact_layers=[0]),
    ],
)
@pytest.mark.parametrize('adaptation', [True, False])
def test_equals_the_modules(tiny, contract, options, adaptation):
    encoder = LaCTEncoder(**{**tiny, 'n_heads': 2, **options}).to(DEVICE).eval()
    for parameter in encoder.layers.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    layers = stacked_layers(encoder, torch.bfloat16)
    x = torch.randn(2, 40, 32, device=DEVICE).bfloat16()
    valid = torch.arange(40, device=DEVICE) < torch.tensor([40, 31], device=DEVICE)[:, None]
    start = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    tables = rotary_tables(torch.arange(40, device=DEVICE), 16, 10000.0)
    state = other = half = None
    for _ in range(2):  # the second with a state, as if the same layer went on
        layer = encoder.layers[1]
        out, state = fused_layer(layer, layers, 1, x, valid, start, (8, 8), adaptation, state, True, None)
        truth, other = layer(x.float(), valid, *tables, (8, 8), adaptation, other, True)
        error = ((out.float() - truth) * valid[..., None]).norm() / (truth * valid[..., None]).norm()
        contract('layer by kernels = modules in fp32 (bf16, relative)', error, 2e-2)
        with torch.autocast(DEVICE, torch.bfloat16):
            half = layer(x.float(), valid, *tables, (8, 8), adaptation, half, True)[1]
        if options.get('lact_layers'):  # not in this one
            assert state is other is half is None
            continue
        ours, theirs = (_apart(memory.weights, other.weights) for memory in (state, half))
        if adaptation:
            contract('layer by kernels: memory, error against that of the modules in bf16', ours / theirs, 2)
        else:
            assert ours == theirs == 0


def _apart(some, others):
    return torch.stack([(a - b).norm() for a, b in zip(some, others)]).norm()


def test_where_it_may_run(tiny):
    encoder = LaCTEncoder(**tiny).to(DEVICE).eval()
    assert 'gradients' in why_not_fused(encoder, torch.bfloat16)
    with torch.no_grad():
        assert (why_not_fused(encoder, torch.bfloat16) is None) == GPU
        assert why_not_fused(encoder, torch.float32) is not None
