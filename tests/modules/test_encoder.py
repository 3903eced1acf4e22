"""The encoder's contracts: padding, empty rows, frozen memory, precision, training."""

import copy

import pytest
import torch

from nemo_lact.modules import LaCTEncoder
from nemo_lact.modules.fast_weights import FastWeightMemory

VARIANTS = {
    'plain': {},
    'conformer': dict(conv_kernel_size=9, macaron=True, block_norm=True),
    'causal': dict(lact_mode='causal', causal_downsampling=True, conv_kernel_size=5, conv_context_size='causal'),
    'gradient': dict(use_muon=False, use_momentum=False),
    'low_rank': dict(w0_w2_low_rank=4, ttt_nope=False, lr_dim=16, inter_multi=2, feat_out=24),
    'full_attention': dict(att_context_size=[-1, -1], subsampling='striding', use_bias=True),
    'memory_in_one_layer': dict(lact_layers=[1]),
    'no_memory': dict(lact_layers=[], conv_kernel_size=5),
}


@pytest.fixture(params=VARIANTS)
def encoder(request, tiny):
    return LaCTEncoder(**{**tiny, **VARIANTS[request.param]}).eval()


def relative(difference, reference):
    """Euclidean length of the difference over that of the reference."""
    return difference.norm() / reference.norm()


def test_shapes_and_lengths(encoder):
    out, lengths = encoder(audio_signal=torch.randn(2, 16, 401), length=torch.tensor([401, 77]))
    assert out.shape == (2, encoder._feat_out, 101) and lengths.tolist() == [101, 20]
    assert lengths.dtype == torch.int64 and out.isfinite().all()


def test_block_norm_ends_every_block(tiny):
    encoder = LaCTEncoder(**tiny, block_norm=True).eval()
    seen = []
    for layer in encoder.layers:
        layer.norm_out.weight.data += torch.rand(32)
        layer.norm_out.bias.data += torch.rand(32)
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer.norm_out, out[0])))
    encoder(audio_signal=torch.randn(2, 16, 200), length=torch.tensor([200, 120]))
    assert len(seen) == len(encoder.layers)
    for norm, x in seen:
        x = (x - norm.bias) / norm.weight  # [B, T, D]
        assert x.mean(-1).abs().max() < 1e-3 and (x.var(-1, unbiased=False) - 1).abs().max() < 1e-2


def test_padding_and_batch_mates_change_nothing(encoder, contract):
    signal, lengths = torch.randn(4, 16, 700), torch.tensor([700, 333, 8, 97])
    with torch.inference_mode():
        out, out_lengths = encoder(audio_signal=signal, length=lengths)
        for i in range(4):
            alone, n = encoder(audio_signal=signal[i : i + 1, :, : lengths[i]], length=lengths[i : i + 1])
            assert n[0] == out_lengths[i]
            difference = relative(out[i, :, :n] - alone[0, :, :n], out[i, :, :n])
            contract('padding and batch-mates (relative, fp32)', difference, 1e-5)


def test_padding_may_hold_anything(encoder):
    signal, lengths = torch.randn(2, 16, 300), torch.tensor([300, 120])
    dirty = signal.clone()
    dirty[1, :, 120:] = float('nan')
    with torch.inference_mode():
        clean, n = encoder(audio_signal=signal, length=lengths)
        other, _ = encoder(audio_signal=dirty, length=lengths)
    assert torch.equal(clean[1, :, : n[1]], other[1, :, : n[1]]) and torch.equal(clean[0], other[0])


def test_padding_keeps_the_argmax_in_bf16(encoder):
    torch.manual_seed(1)
    head = torch.nn.Linear(encoder._feat_out, 30)
    signal, lengths = torch.randn(3, 16, 600), torch.tensor([600, 333, 180])
    # A random head has near ties, which any rounding breaks: compare where the best leads by a tenth of the spread.
    with torch.inference_mode(), torch.autocast('cpu', dtype=torch.bfloat16):
        out, n = encoder(audio_signal=signal, length=lengths)
        for i in range(3):
            alone, _ = encoder(audio_signal=signal[i : i + 1, :, : lengths[i]], length=lengths[i : i + 1])
            a = head(out[i, :, : n[i]].T.float()).float()
            b = head(alone[0, :, : n[i]].T.float()).float()
            top = a.topk(2, dim=-1).values
            sure = top[:, 0] - top[:, 1] > 0.1 * a.std()
            assert sure.float().mean() > 0.5
            assert torch.equal(a.argmax(-1)[sure], b.argmax(-1)[sure])


def test_empty_and_one_frame_rows(encoder, contract):
    signal = torch.randn(4, 16, 300)
    lengths = torch.tensor([300, 0, 1, 200])
    with torch.inference_mode():
        out, n = encoder(audio_signal=signal, length=lengths)
        neighbours, _ = encoder(audio_signal=signal[[0, 3]], length=lengths[[0, 3]])
    assert out.isfinite().all() and n.tolist()[1:3] == [0, 1]
    difference = relative(out[[0, 3]] - neighbours, neighbours)
    contract('rows of length 0 and 1: neighbours (relative, fp32)', difference, 1e-5)


def test_a_batch_of_one_frame(encoder):
    out, n = encoder(audio_signal=torch.randn(1, 16, 1), length=torch.tensor([1]))
    assert out.isfinite().all() and n.tolist() == [1]


def test_zero_steps_equal_frozen_memory_exactly(encoder, contract, monkeypatch):
    signal, lengths = torch.randn(2, 16, 600), torch.tensor([600, 350])
    original = FastWeightMemory._steps
    with torch.inference_mode():
        learned, n = encoder(audio_signal=signal, length=lengths)
        encoder.adaptation = False
        frozen, _ = encoder(audio_signal=signal, length=lengths)
        encoder.adaptation = True

        def no_step(self, x):
            eta, mu = original(self, x)
            return eta * 0, mu

        monkeypatch.setattr(FastWeightMemory, '_steps', no_step)
        still, _ = encoder(audio_signal=signal, length=lengths)
    contract('step sizes 0 = frozen memory, encoder (exact)', (still - frozen).abs().max(), 0.0)
    remembers = bool(encoder.config.memory_layers)
    assert ((learned - frozen).abs().max() > 1e-3) == remembers  # and learning does something


@pytest.mark.parametrize('mode', ['bidirectional', 'causal'])
def test_memory_reaches_beyond_the_window(tiny, mode):
    """Changing the first chunk changes the read 8 windows later, only if the memory adapts."""
    encoder = LaCTEncoder(**{**tiny, 'lact_mode': mode}).eval()
    a = torch.randn(1, 16, 800)
    b = a.clone()
    b[:, :, :80] += torch.randn(1, 16, 80)
    moved = {}
    for adaptation in (True, False):
        encoder.adaptation = adaptation
        with torch.inference_mode():
            x, y = (encoder(audio_signal=s, length=torch.tensor([800]))[0] for s in (a, b))
        moved[adaptation] = (x - y)[:, :, 100:].abs().max()
    assert moved[True] > 1e-3 and moved[False] == 0.0


def test_causal_memory_hears_nothing_of_the_future(tiny):
    encoder = LaCTEncoder(**{**tiny, **VARIANTS['causal'], 'att_context_size': [8, 0]}).eval()
    a = torch.randn(1, 16, 800)
    b = a.clone()
    b[:, :, 480:] = torch.randn(1, 16, 320)
    with torch.inference_mode():
        x, y = (encoder(audio_signal=s, length=torch.tensor([800]))[0] for s in (a, b))
    assert torch.equal(x[:, :, :118], y[:, :, :118]) and not torch.equal(x[:, :, 125:], y[:, :, 125:])


def test_state_carried_at_chunk_borders_equals_one_pass(tiny, contract):
    """Layer by layer the memory may be cut at any chunk border (whole-encoder segments need streaming caches)."""
    encoder = LaCTEncoder(**{**tiny, 'n_layers': 1, 'att_context_size': [0, 0]}).eval()
    layer = encoder.layers[0]
    x, valid = torch.randn(2, 96, 32), torch.ones(2, 96, dtype=torch.bool)
    cos, sin = torch.ones(96, 4), torch.zeros(96, 4)
    with torch.inference_mode():
        whole, last = layer(x, valid, cos, sin, (0, 0), True)
        state, parts = None, []
        for start in (0, 48):
            part, state = layer(x[:, start : start + 48], valid[:, :48], cos[:48], sin[:48], (0, 0), True, state)
            parts.append(part)
    contract('memory cut at chunk borders = one pass (fp32)', (torch.cat(parts, 1) - whole).abs().max(), 1e-4)
    for a, b in zip(last.weights, state.weights):
        contract('memory cut at chunk borders = one pass (fp32)', (a - b).abs().max(), 1e-4)


def test_fast_weights_stay_fp32_under_autocast(tiny):
    for fp32_states, expected in ((True, torch.float32), (False, torch.bfloat16)):
        encoder = LaCTEncoder(**{**tiny, 'fp32_states': fp32_states}).bfloat16().eval()
        with torch.inference_mode():
            out, _, state = encoder.forward_with_state(torch.randn(1, 16, 300).bfloat16(), torch.tensor([300]))
        assert state.weights[0].dtype == expected and out.dtype == torch.bfloat16 and out.isfinite().all()
    encoder = LaCTEncoder(**tiny).eval()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        state = encoder.forward_with_state(torch.randn(1, 16, 300))[2]
    assert state.weights[0].dtype == torch.float32


def step_losses(encoder, steps, dtype=None, scale=1.0):
    """Losses of a few Adam steps on a fixed random CTC task."""
    head = torch.nn.Linear(encoder.config.d_model if encoder._feat_out is None else encoder._feat_out, 8)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    signal, lengths = torch.randn(3, 16, 400), torch.tensor([400, 250, 300])
    targets = torch.randint(1, 8, (3, 12))
    losses = []
    for _ in range(steps):
        with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
            out, n = encoder(audio_signal=signal, length=lengths)
            logits = head(out.transpose(1, 2)).float().log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(logits.transpose(0, 1), targets, n, torch.tensor([12, 12, 12]))
        optimizer.zero_grad()
        (loss * scale).backward()
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all()
                parameter.grad /= scale
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('dtype,scale', [(None, 1.0), (torch.bfloat16, 1.0), (torch.float16, 1024.0)])
def test_gradients_finite_and_loss_falls(encoder, dtype, scale):
    losses = step_losses(encoder.train(), 12, dtype, scale)
    assert losses[-1] < 0.7 * losses[0]


def compiled(encoder, backend):
    torch._dynamo.reset()
    encoder.layers = torch.nn.ModuleList(torch.compile(layer, backend=backend) for layer in encoder.layers)
    return encoder


def test_loss_falls_compiled(tiny):
    # aot_eager traces forward and backward as inductor does, without its minutes of C++ on a CPU.
    losses = step_losses(compiled(LaCTEncoder(**tiny).train(), 'aot_eager'), 8)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiled_equals_eager(tiny, contract, backend):
    encoder = LaCTEncoder(**{**tiny, 'n_layers': 1}).eval()
    fast = compiled(copy.deepcopy(encoder), backend)
    x, n = torch.randn(2, 16, 300), torch.tensor([300, 200])
    with torch.no_grad():
        a, b = encoder(audio_signal=x, length=n)[0], fast(audio_signal=x, length=n)[0]
    contract('compiled = eager encoder (relative, fp32)', relative(a - b, a), 1e-5)


def test_activation_checkpointing_changes_no_gradient(tiny, contract):
    plain = LaCTEncoder(**tiny).train()
    frugal = LaCTEncoder(**{**tiny, 'activation_checkpointing': True}).train()
    frugal.load_state_dict(plain.state_dict())
    x, n = torch.randn(2, 16, 300), torch.tensor([300, 200])
    for encoder in (plain, frugal):
        encoder(audio_signal=x, length=n)[0].square().mean().backward()
    for a, b in zip(plain.parameters(), frugal.parameters()):
        difference = (a.grad - b.grad).abs().max() / a.grad.abs().max().clamp(min=1e-6)
        contract('activation checkpointing: gradients (relative, fp32)', difference, 1e-5)


def test_frozen_memory_leaves_no_parameter_without_gradient(tiny):
    encoder = LaCTEncoder(**{**tiny, 'adaptation': False}).train()
    encoder(audio_signal=torch.randn(2, 16, 300), length=torch.tensor([300, 200]))[0].square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    assert not encoder.layers[0].mixer.memory.lr_proj.weight.requires_grad


def test_dropout_and_stochastic_depth_only_in_training(tiny):
    options = {**tiny, 'dropout': 0.3, 'dropout_att': 0.3, 'stochastic_depth_drop_prob': 0.5, 'n_layers': 4}
    encoder = LaCTEncoder(**options)
    x, n = torch.randn(1, 16, 300), torch.tensor([300])
    assert not torch.equal(*(encoder.train()(audio_signal=x, length=n)[0] for _ in range(2)))
    assert torch.equal(*(encoder.eval()(audio_signal=x, length=n)[0] for _ in range(2)))
    assert encoder.layer_drop_probs[-1] == 0.5


def test_wrong_feature_width_names_both(encoder):
    with pytest.raises(ValueError, match=r'\(1, 80, 50\), expected \[B, 16, T\]'):
        encoder(audio_signal=torch.randn(1, 80, 50), length=torch.tensor([50]))


def test_change_attention_model(tiny):
    encoder = LaCTEncoder(**tiny).eval()
    x, n = torch.randn(1, 16, 400), torch.tensor([400])
    before = encoder(audio_signal=x, length=n)[0]
    encoder.change_attention_model('rel_pos_local_attn', [4, 4])
    assert encoder.att_context_size == [4, 4] and not torch.equal(encoder(audio_signal=x, length=n)[0], before)
    encoder.change_attention_model(att_context_size=[8, 8])
    assert torch.equal(encoder(audio_signal=x, length=n)[0], before)
    encoder.change_attention_model('rel_pos')
    assert encoder.att_context_size == [-1, -1]
    with pytest.raises(ValueError, match='att_context_size=9000'):
        encoder.change_attention_model('rel_pos_local_attn', [9000, 9000])


def test_freeze_and_unfreeze(tiny):
    encoder = LaCTEncoder(**tiny)
    encoder.freeze()
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.unfreeze()
    assert all(p.requires_grad for p in encoder.parameters())
