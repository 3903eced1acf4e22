"""NeMo's `model.export` with caches: a streaming step as an ONNX graph, step by step equal to torch."""

import numpy as np
import pytest
import torch
from small_models import build

onnxruntime = pytest.importorskip('onnxruntime')

CHUNKS = dict(att_context_size=[[12, 3], [12, 1]], att_context_style='chunked_limited')
VARIANTS = {
    'chunks': CHUNKS,
    'frame by frame, gradient steps': dict(
        att_context_size=[12, 0], use_muon=False, use_momentum=False, lact_retention=0.7
    ),
    'convolution, 8x': dict(
        CHUNKS, conv_kernel_size=5, conv_context_size='causal', macaron=True, block_norm=True, subsampling_factor=8
    ),
    'memory in one layer': dict(CHUNKS, lact_layers=[1]),
    'no memory': dict(CHUNKS, lact_layers=[]),
}


def streaming(tiny, **extra):
    return build({**tiny, 'lact_mode': 'causal', 'causal_downsampling': True, 'lact_chunk_size': 10, **extra}).eval()


@pytest.mark.parametrize('variant', VARIANTS)
def test_onnx_steps_equal_torch_and_offline(tiny, tmp_path, contract, variant):
    model = streaming(tiny, **VARIANTS[variant])
    encoder, cfg = model.encoder, model.encoder.streaming_cfg
    model.set_export_config({'cache_support': True})
    model.export(str(tmp_path / 'step.onnx'))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the file notes the traced batch of 1 for the caches it returns
    session = onnxruntime.InferenceSession(str(tmp_path / 'step.onnx'), options)
    names = ['audio_signal', 'length', 'cache_last_channel', 'cache_last_time', 'cache_last_channel_len']
    assert [i.name for i in session.get_inputs()] == names
    again, step = cfg.pre_encode_cache_size[1], cfg.chunk_size[1]
    frames = torch.tensor([25 * step - 3, 11 * step + 1])  # several memory chunks; the second ends inside a step
    heard = torch.randn(2, 16, int(frames.max()))
    signal = torch.nn.functional.pad(heard, (again, step))
    caches = encoder.get_initial_cache_state(batch_size=2)
    theirs = [caches[0].transpose(0, 1).numpy(), caches[1].transpose(0, 1).numpy(), caches[2].numpy()]
    rows = [[], []]
    for at in range(0, int(frames.max()), step):
        part = signal[:, :, at : at + again + step]
        length = (frames - at + again).clamp(min=0, max=again + step)
        with torch.inference_mode():
            encoded, n, *caches = encoder.cache_aware_stream_step(part, length, *caches, keep_all_outputs=False)
            ours = model.decoder(encoder_output=encoded)
        got, m, *theirs = session.run(None, dict(zip(names, [part.numpy(), length.numpy(), *theirs])))
        n = n.clamp(max=cfg.valid_out_len)  # a graph gives no more frames than a step has
        assert m.tolist() == n.tolist()
        for row in range(2):
            if n[row]:
                a, b = ours[row, : n[row]].numpy(), got[row, : n[row]]
                contract('ONNX step = torch step (relative, fp32)', np.linalg.norm(a - b) / np.linalg.norm(a), 1e-4)
                rows[row].append(b)
        assert caches[2].tolist() == theirs[2].tolist()
        for row in (0, 1):
            for a, b in ((caches[0], theirs[0]), (caches[1], theirs[1])):
                if a.numel() and at + step < frames[row]:  # torch has one frame more after the end
                    a, b = a[:, row].numpy(), b[row]
                    contract('ONNX caches = torch (relative, fp32)', np.linalg.norm(a - b) / np.linalg.norm(a), 1e-4)
    with torch.inference_mode():
        encoded, n = encoder(audio_signal=heard, length=frames)
        whole = model.decoder(encoder_output=encoded).numpy()
    for row in range(2):
        b = np.concatenate(rows[row])
        assert n[row] - len(b) in (0, 1)
        a = whole[row, : len(b)]
        contract('ONNX steps = offline (relative, fp32)', np.linalg.norm(a - b) / np.linalg.norm(a), 1e-4)


def test_offline_model_and_too_long_steps_say_why_not(tiny):
    with pytest.raises(ValueError, match='cannot stream: lact_mode=bidirectional'):
        build(tiny).set_export_config({'cache_support': True})
    model = streaming(tiny, **CHUNKS)
    model.set_export_config({'cache_support': True})
    model.encoder.setup_streaming_params(chunk_size=12, shift_size=12)
    with pytest.raises(ValueError, match='12 encoder frames is longer than lact_chunk_size=10'):
        model.encoder.input_example()
