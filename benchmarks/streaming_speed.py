"""Real-time streams per GPU: LaCT beside NeMo's cache-aware FastConformer, many streams in one batch.

    python benchmarks/streaming_speed.py --output benchmarks/results

Contestants: the ConformerEncoder of NeMo's fastconformer_ctc_bpe_streaming.yaml (512 × 17, causal) and the LaCTEncoder
of lact_ctc_bpe_streaming.yaml (768 × 12, memory and caches of fp32), both through NeMo's `cache_aware_stream_step`, and
LaCT once more through its own `stream_step`. On a GPU both come once more in place (`caches_in_place`,
`in_place=True`); else a step leaves the caches it is given as they were. On a CPU all are small. Random features,
random weights; bf16 autocast on a GPU. Steps of 1.04 s are 13 encoder frames of 80 ms, an attention chunk of 13:
[65, 12] for FastConformer and [130, 12] for LaCT. The published pair [70, 13], here beside [140, 13], makes steps of 14
frames, 1.12 s.

The streams of a batch began one step after another, as in a service: LaCT's memory learns every 256 frames of a stream,
and with many streams there is one that learns in nearly every step. A measurement is the mean of some steps; reported
are median and range of the rounds, the slowest step, peak memory beyond the weights (the streams' caches included), and
streams × seconds of a step / seconds a step takes. Before timing, streams of small encoders, LaCT's learning every 32
frames, are held against the same encoders offline in fp32, in fp32 and in the precision timed.
"""

import itertools
import statistics
from dataclasses import replace
from functools import partial

import torch
from nemo.collections.asr.modules import ConformerEncoder
from side_by_side import add_rows, clear, new_parser, new_report, peak, take_turns
from speed import DEVICE, GPU, clock, precision, recipe_encoder

from nemo_lact.modules import LaCTEncoder

RECIPE = 'lact_ctc_bpe_streaming'
FRAME = 0.08  # seconds of an encoder frame
TASKS = {  # name -> streams, look-ahead of the attention in encoder frames
    '16 streams x 1.04 s': (16, 12),
    '256 streams x 1.04 s': (256, 12),
    '16 streams x 1.12 s': (16, 13),
    '256 streams x 1.12 s': (256, 13),
} if GPU else {'4 streams x 1.04 s': (4, 12)}  # fmt: skip
LIMITS = {'fp32': 1e-4, 'bf16': 5e-2}  # of streams against the offline encoder in fp32
LEFT_CHUNKS = {'FastConformer': 5, 'LaCT': 10}  # attention chunks of left context: 70 and 140 frames of 14
SIZES = {  # name -> FastConformer, LaCT
    'base': (dict(d_model=512, n_layers=17, n_heads=8, subsampling_conv_channels=256), {}),
    'small': (
        dict(d_model=256, n_layers=16, n_heads=4, subsampling_conv_channels=256),
        dict(d_model=384, n_layers=13, n_heads=6, num_lact_heads=3),
    ),
    'tiny': (
        dict(d_model=32, n_layers=2, n_heads=4, subsampling_conv_channels=16),
        dict(d_model=32, n_layers=2, n_heads=4, num_lact_heads=2, lact_chunk_size=32, subsampling_conv_channels=16),
    ),
}


def windows(family: str) -> list[list[int]]:
    return [[LEFT_CHUNKS[family] * (right + 1), right] for right in (12, 13)]


def build(family: str, size: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == 'LaCT':
        encoder = LaCTEncoder(**{**recipe_encoder(RECIPE), **SIZES[size][1], 'att_context_size': windows(family)})
    else:
        encoder = ConformerEncoder(
            feat_in=80, subsampling='dw_striding', subsampling_factor=8, causal_downsampling=True, use_bias=True,
            ff_expansion_factor=4, self_attention_model='rel_pos', att_context_style='chunked_limited',
            att_context_size=windows(family), conv_kernel_size=9, conv_norm_type='layer_norm',
            conv_context_size='causal', **SIZES[size][0],
        )  # fmt: skip
    return encoder.to(DEVICE).eval()


class NemoCaches:
    """Streams of one batch through NeMo's interface, from the features of the first step on."""

    def __init__(self, encoder, streams: int):
        self.encoder, self.started = encoder, False
        encoder.caches_in_place = False  # of a LaCTEncoder
        self.caches = encoder.get_initial_cache_state(batch_size=streams)

    def under_way(self, frames: torch.Tensor) -> None:
        """As if stream i had heard `frames[i]` encoder frames, with random keys and values."""
        left = self.encoder.att_context_size[0]
        channel, time, length = self.caches
        channel[:, :, : 2 * left if isinstance(self.encoder, LaCTEncoder) else left].normal_()
        # LaCT counts feature frames heard, NeMo's ConformerEncoder the filled rows of its cache.
        heard = 1 + 8 * (frames - 1) if isinstance(self.encoder, LaCTEncoder) else frames.clamp(max=left)
        self.caches, self.started = (channel, time, heard.to(length)), True

    def step(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """features: [B, 80, n], of them `again(started)` heard before. Returns encoded [B, D, m] and counts [B]."""
        length = torch.full((features.size(0),), features.size(2), device=features.device)
        out, count, *self.caches = self.encoder.cache_aware_stream_step(
            processed_signal=features, processed_signal_length=length, cache_last_channel=self.caches[0],
            cache_last_time=self.caches[1], cache_last_channel_len=self.caches[2], keep_all_outputs=False,
            drop_extra_pre_encoded=None if self.started else 0,
        )  # fmt: skip
        self.started = True
        return out, count

    def again(self) -> int:
        return self.encoder.streaming_cfg.pre_encode_cache_size[1] if self.started else 0


class NemoCachesInPlace(NemoCaches):
    """Caches that a step may write over."""

    def __init__(self, encoder, streams: int):
        super().__init__(encoder, streams)
        encoder.caches_in_place = True


class OwnState:
    """The same through `LaCTEncoder.stream_step`."""

    in_place = False

    def __init__(self, encoder, streams: int):
        self.encoder, self.state = encoder, encoder.init_state(streams)

    def under_way(self, frames: torch.Tensor) -> None:
        for tensor in self.state.attention:
            tensor.normal_()
        filled = frames % self.encoder.config.lact_chunk_size
        counters = dict(position=frames, frames=frames, filled=filled, heard=1 + 8 * (frames - 1))
        self.state = replace(self.state, **counters)

    def step(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, count, self.state = self.encoder.stream_step(features, None, self.state, in_place=self.in_place)
        return out, count

    def again(self) -> int:
        return 0


class OwnStateInPlace(OwnState):
    in_place = True


CONTESTANTS = {  # name -> encoder, its streams
    'FastConformer': ('FastConformer', NemoCaches),
    'LaCT': ('LaCT', NemoCaches),
    'LaCT stream_step': ('LaCT', OwnState),
}
if GPU:  # elsewhere a step makes new caches in any case
    CONTESTANTS |= {
        'LaCT in place': ('LaCT', NemoCachesInPlace),
        'LaCT stream_step in place': ('LaCT', OwnStateInPlace),
    }


def use_window(encoder, family: str, right: int) -> int:
    """Choose the window; returns encoder frames a step."""
    encoder.set_default_att_context_size(windows(family)[right - 12])
    encoder.setup_streaming_params()  # ConformerEncoder's choice leaves the streaming parameters as they were
    return right + 1


@torch.inference_mode()
def check(who: str, encoder, right: int, dtype: str) -> float:
    """Four streams of ten steps against the same encoder offline in fp32: the difference relative to the norm."""
    family, kind = CONTESTANTS[who]
    frames = use_window(encoder, family, right)
    torch.manual_seed(0)
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    signal = torch.randn(4, 80, 1 + 8 * (10 * frames - 1), device=DEVICE)
    whole = encoder(audio_signal=signal, length=torch.full((4,), signal.size(2), device=DEVICE))[0]
    streams, parts, at = kind(encoder, 4), [], 0
    for step in range(10):
        # The first encoder frame takes one feature, every other one eight.
        end = 1 + 8 * (frames * (step + 1) - 1)
        with precision(dtype):
            out, count = streams.step(signal[:, :, max(at - streams.again(), 0) : end])
        parts.append(out[:, :, : int(count.min())].float())
        at = end
    torch.backends.cudnn.allow_tf32 = tf32
    together = torch.cat(parts, dim=2)
    if together.shape != whole.shape:
        raise SystemExit(f'{who}: {tuple(together.shape)} from streams, {tuple(whole.shape)} offline')
    return ((together - whole).norm() / whole.norm()).item()


@torch.inference_mode()
def measure(who: str, encoder, streams: int, right: int, steps: int, kind: str) -> dict:
    """Mean milliseconds of `steps` steps of streams under way, the slowest of them, and memory."""
    family, batch = CONTESTANTS[who]
    frames = use_window(encoder, family, right)
    before = clear()
    batch = batch(encoder, streams)
    begun = encoder.att_context_size[0] // frames + 10  # steps heard by the youngest stream: its caches are full
    batch.under_way(frames * (begun + torch.arange(streams, device=DEVICE)))
    torch.manual_seed(0)
    features = torch.randn(streams, 80, batch.again() + 8 * frames, device=DEVICE)
    with precision(kind):
        count = batch.step(features)[1]
        if not bool((count == frames).all()):
            raise SystemExit(f'{who} gave {count.tolist()} frames in a step of {frames}')
        for _ in range(3 if GPU else 0):  # kernels are compiled at their first use, of the memory's step too
            batch.step(features)
        clear()
        times = [clock(lambda: batch.step(features)) for _ in range(steps)]
    found = dict(ms=statistics.mean(times), slowest_ms=max(times))
    return {**found, 'gib': peak() - before} if GPU else found


def main() -> None:
    parser = new_parser(__doc__, TASKS, CONTESTANTS, rounds=3)
    parser.set_defaults(tasks=[task for task in TASKS if '1.04' in task])
    parser.add_argument('--steps', type=int, default=10, help='in a measurement')
    args = parser.parse_args()
    report = new_report(args.commit)
    path = args.output and args.output / f'streaming_speed_{"gpu" if GPU else "cpu"}.json'
    families = dict.fromkeys(CONTESTANTS[who][0] for who in args.contestants)
    looks = sorted({TASKS[task][1] for task in args.tasks})
    report['checks'] = []
    little = {family: build(family, 'tiny') for family in families}
    for who in args.contestants:
        for right, kind in itertools.product(looks, dict.fromkeys(('fp32', args.precision))):
            error, limit = check(who, little[CONTESTANTS[who][0]], right, kind), LIMITS[kind]
            report['checks'].append(dict(contestant=who, input=f'steps of {right + 1} frames, {kind}', error=error))
            print(f'{who}: streams are {error:.1e} from offline, {kind}, steps of {right + 1} frames', flush=True)
            if not error < limit:
                raise SystemExit(
                    f'{who}: streams are {error:.2e} off the offline output, over {limit:g}: not worth timing'
                )
    del little
    encoders = {family: build(family, 'tiny' if args.tiny else 'base' if GPU else 'small') for family in families}
    report['parameters'] = {family: sum(p.numel() for p in e.parameters()) for family, e in encoders.items()}
    for task in args.tasks:
        streams, right = TASKS[task]
        calls = {
            who: partial(measure, who, encoders[CONTESTANTS[who][0]], streams, right, args.steps, args.precision)
            for who in args.contestants
        }
        results = take_turns(calls, args.rounds)
        for found in results.values():
            if 'ms' in found:
                found['real_time_streams'] = streams * FRAME * (right + 1) / found['ms'] * 1000
        add_rows(report, task, results, path, precision=args.precision, streams=streams, frames=right + 1)


if __name__ == '__main__':
    main()
