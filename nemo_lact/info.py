"""What a .nemo file holds and what it needs: sizes, chunk and window, memory of a stream, room on a GPU.

The file is read without building the model. Only for a `LaCTEncoder` the encoder is built, with random
weights, to ask it for the size of its state.
"""

import io
import tarfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from nemo_lact.transcription import check_nemo_file

GIB = 2**30
ROW_SECONDS = (10, 60, 600)
USABLE = 0.9  # share of the GPU memory counted on; the rest is for CUDA itself and fragments


def describe(path: str | Path) -> dict:
    """Sizes of a .nemo file; for a LaCT encoder also lengths in seconds and the memory of a stream.

    Returns:
        `file_bytes`, `model` and `encoder` (class names), `sample_rate`, `values` (parameters and buffers in the
        weights file, by part), `weights_bytes`, `encoder_config`, and `lact` (None for other encoders) with
        `frame_seconds`, `chunk` and `window` (encoder frames; seconds as `..._seconds`), `state_bytes_per_stream` and
        the terms of `row_bytes`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .nemo file, or one without config or weights.
    """
    check_nemo_file(path)
    cfg, tensors = config_and_weights(Path(path))
    parts: dict[str, int] = {}
    for name, tensor in tensors.items():
        part = _part(name)
        parts[part] = parts.get(part, 0) + tensor.numel()
    encoder = cfg.get('encoder') or {}
    found = {
        'file': str(path),
        'file_bytes': Path(path).stat().st_size,
        'model': str(cfg.get('target', 'unknown')).rsplit('.', 1)[-1],
        'nemo_version': cfg.get('nemo_version'),
        'sample_rate': (cfg.get('preprocessor') or {}).get('sample_rate', cfg.get('sample_rate')),
        'values': {**parts, 'total': sum(parts.values())},
        'weights_bytes': sum(t.numel() * t.element_size() for t in tensors.values()),
        'encoder': str(encoder.get('_target_', 'none')),
        'encoder_config': {k: v for k, v in OmegaConf.to_container(OmegaConf.create(encoder)).items() if k[0] != '_'},
        'lact': None,
    }
    if found['encoder'].rsplit('.', 1)[-1] == 'LaCTEncoder':
        found['lact'] = _lact(found['encoder_config'], cfg)
    return found


def room(found: dict, gpu_gib: float) -> dict:
    """An estimate of what a GPU holds for inference in fp32, from sizes alone; every term is in the result.

    Args:
        found: what `describe` gave for a LaCT model.
        gpu_gib: memory of the GPU in GiB.

    Returns:
        `free_bytes` beside the weights; `batch_rows`, rows of so many seconds that fit in one batch;
        `chunk_bytes`, what a stream needs while it hands over a chunk; `streams_in_batch`, streams that do so
        together; `streams_held`, states that fit alone.

    Raises:
        ValueError: no LaCT model, or its weights alone do not fit.
    """
    lact = found['lact']
    if lact is None:
        raise ValueError(f'{found["file"]}: the estimate is for LaCT encoders, this one is {found["encoder"]}')
    free = int(gpu_gib * GIB * USABLE) - found['weights_bytes']
    if free <= 0:
        raise ValueError(f'the weights need {_size(found["weights_bytes"])}, over {USABLE:.0%} of {gpu_gib:g} GiB')
    state, chunk = lact['state_bytes_per_stream'], row_bytes(lact, lact['chunk_seconds'])
    return {
        'gpu_gib': gpu_gib,
        'usable_share': USABLE,
        'free_bytes': free,
        'batch_rows': {seconds: free // row_bytes(lact, seconds) for seconds in ROW_SECONDS},
        'chunk_bytes': chunk,
        'streams_in_batch': free // (state + chunk),
        'streams_held': free // state,
    }


def row_bytes(lact: dict, seconds: float) -> int:
    """fp32 bytes a row needs in a forward pass without gradients: the first convolution of the front end, or one layer
    and the copies of its memory, whichever is more."""
    front, layer = lact['front_bytes_per_second'] * seconds, lact['layer_bytes_per_second'] * seconds
    return int(max(front, layer + lact['memory_bytes_per_row']))


def config_and_weights(path: Path) -> tuple[DictConfig, dict]:
    """Of a .nemo file, without making the model. Weights are loaded as data only: nothing in the file is run.

    Raises:
        ValueError: it is no .nemo file, or damaged.
    """
    import torch

    with tarfile.open(path) as tar:
        members = {Path(m.name).name: m for m in tar.getmembers() if m.isfile()}
        for name in ('model_config.yaml', 'model_weights.ckpt'):
            if name not in members:
                inside = ', '.join(members) or 'nothing'
                raise ValueError(f'{path} has no {name}, so it is no .nemo file; it holds {inside}')
        cfg = OmegaConf.load(io.TextIOWrapper(tar.extractfile(members['model_config.yaml']), 'utf-8'))
        try:
            weights = torch.load(tar.extractfile(members['model_weights.ckpt']), map_location='cpu', weights_only=True)
        except Exception as error:
            raise ValueError(f'{path}: the weights cannot be read, the file is damaged') from error
    return cfg, {name: t for name, t in weights.items() if isinstance(t, torch.Tensor)}


def _part(name: str) -> str:
    """'encoder.layers.3.ff2.down.weight' belongs to 'encoder.layers.ff2', 'decoder.x' to 'decoder'."""
    words = [word for word in name.split('.')[:-1] if not word.isdigit()]
    if words[:2] != ['encoder', 'layers']:
        return '.'.join(words[:2] if words[0] == 'encoder' else words[:1])
    if words[2].startswith('norm'):
        return 'encoder.layers.norm*'
    return '.'.join(words[:4] if words[3:4] == ['memory'] else words[:3])


def _lact(options: dict, cfg: DictConfig) -> dict:
    from nemo_lact.modules import LaCTEncoder

    encoder = LaCTEncoder(**options)
    c = encoder.config
    frame = c.subsampling_factor * float(cfg.preprocessor.get('window_stride', 0.01))
    window = list(c.window)
    state = encoder.state_bytes(batch_size=1)
    channels = c.d_model if c.subsampling_conv_channels == -1 else c.subsampling_conv_channels
    # fp32 values for an encoder frame. Front: the first convolution halves time and channels; its output and the masked
    # copy of it live together. Layer: residual, norm, q, k, v for window and memory, both results; or the feed-forward.
    front = 2 * channels * (c.feat_in // 2) * (c.subsampling_factor // 2)
    layer = max(12 * c.d_model, 2 * c.d_model + 3 * c.ff_width)
    return {
        'mode': c.lact_mode,
        'frame_seconds': frame,
        'chunk': c.lact_chunk_size,
        'chunk_seconds': c.lact_chunk_size * frame,
        'window': window,
        'window_seconds': [side if side < 0 else side * frame for side in window],
        'state_bytes_per_stream': state,
        'front_bytes_per_second': round(4 * front / frame),
        'layer_bytes_per_second': round(4 * layer / frame),
        # Weights, gradients and what orthogonalises them, in float64 (fp32 evaluation), a layer at a time.
        'memory_bytes_per_row': 8 * 6 * 3 * c.num_lact_heads * c.lact_head_width * c.lact_hidden_width,
    }


def _size(count: float) -> str:
    for unit in ('B', 'KiB', 'MiB'):
        if count < 1024:
            return f'{count:.1f} {unit}' if unit != 'B' else f'{count} B'
        count /= 1024
    return f'{count:,.1f} GiB'


def show(found: dict) -> None:
    """Print what `describe` found, and `found['room']` if it is there."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(found['file'], soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    table.add_column(overflow='fold')
    table.add_column(overflow='fold')
    table.add_row('file', _size(found['file_bytes']))
    table.add_row('model', f'{found["model"]}, saved by NeMo {found["nemo_version"]}')
    table.add_row('encoder', found['encoder'].rsplit('.', 1)[-1])
    table.add_row('sample rate', f'{found["sample_rate"]} Hz')
    table.add_row('weights', _size(found['weights_bytes']))
    table.add_section()
    table.add_row('parameters and buffers', '')
    for part, count in found['values'].items():
        table.add_row(f'  {part}', f'{count:,}')
    table.add_section()
    table.add_row('encoder config', '')
    for key, value in found['encoder_config'].items():
        table.add_row(f'  {key}', str(value))
    lact = found['lact']
    if lact is not None:
        table.add_section()
        table.add_row('memory', lact['mode'])
        table.add_row('encoder frame', f'{lact["frame_seconds"] * 1000:g} ms')
        table.add_row('chunk', f'{lact["chunk"]} frames, {lact["chunk_seconds"]:.2f} s')
        for side, frames, seconds in zip(('left', 'right'), lact['window'], lact['window_seconds'], strict=True):
            table.add_row(f'window {side}', 'all' if frames < 0 else f'{frames} frames, {seconds:.2f} s')
        table.add_row('state of a stream', _size(lact['state_bytes_per_stream']))
    console.print(table)
    if lact is None:
        console.print('The encoder is not LaCT: no chunk, window or stream state to show.')
    elif 'room' in found:
        console.print(_arithmetic(found), highlight=False, soft_wrap=True)


def _arithmetic(found: dict) -> str:
    room, lact, weights = found['room'], found['lact'], _size(found['weights_bytes'])
    free, state, chunk = (_size(n) for n in (room['free_bytes'], lact['state_bytes_per_stream'], room['chunk_bytes']))
    front, layer, row = (
        _size(lact[k]) for k in ('front_bytes_per_second', 'layer_bytes_per_second', 'memory_bytes_per_row')
    )
    rows = ', '.join(f'{count:,} x {seconds} s' for seconds, count in room['batch_rows'].items())
    return (
        f'Estimate for inference in fp32 on {room["gpu_gib"]:g} GiB, from sizes, not measured on a GPU:\n'
        f'  free     {room["gpu_gib"]:g} GiB x {room["usable_share"]} - weights {weights} = {free}\n'
        f'  a row    of t seconds: the more of {front} x t (front end) and {layer} x t + {row} (a layer)\n'
        f'  a batch  {free} / a row = {rows}\n'
        f'  streams  {free} / (state {state} + a chunk of {lact["chunk_seconds"]:.1f} s {chunk})'
        f' = {room["streams_in_batch"]:,} in one batch\n'
        f'           {free} / {state} = {room["streams_held"]:,} states at most'
    )
