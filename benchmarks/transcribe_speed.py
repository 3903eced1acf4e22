"""Audio files to text with NeMo's `model.transcribe`: LaCT beside FastConformer, with full and with local attention.

    python benchmarks/transcribe_speed.py --output benchmarks/results

Everything counts: reading WAV files, NeMo's preprocessor, encoder, decoder, greedy CTC, text. Models are
EncDecCTCModelBPE with FastConformer-L (512 × 17) and LaCT base (768 × 12), on a CPU small ones, with random weights
and a decoder scaled to give about as much text as speech has, of 128 pieces; bf16 autocast on a GPU. The bundled speech
is cut into 100 files of 8 to 12 s, in batches of 32, and joined to one hour. Contestants take turns after a warm-up;
reported are median and range, hours of audio an hour (RTFx), and peak GPU memory beyond the weights.
"""

import random
import tempfile
from functools import partial
from pathlib import Path

import soundfile
import torch
from long_recordings import ROOT, SIZES, joined_speech
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf
from side_by_side import add_rows, clear, new_parser, new_report, peak, take_turns
from speed import DEVICE, GPU, clock, precision

import nemo_lact  # noqa: F401  registers the encoder with NeMo
from nemo_lact.data.tokenizer import train_tokenizer

RATE = 16000
TASKS = {  # name -> files, seconds of each
    '100 files of 10 s': (100, 10),
    '1 file of 3600 s': (1, 3600),
} if GPU else {'8 files of 10 s': (8, 10), '1 file of 300 s': (1, 300)}  # fmt: skip
CONTESTANTS = {  # name -> options of the encoder
    'FastConformer full': dict(self_attention_model='rel_pos', att_context_size=[-1, -1]),
    'FastConformer local': dict(self_attention_model='rel_pos_local_attn', att_context_size=[128, 128]),
    'LaCT': {},
    'LaCT compiled': dict(compile=True),
}
TINY = {'lact': dict(d_model=32, n_layers=1, n_heads=4, num_lact_heads=2, subsampling_conv_channels=16),
        'fastconformer': dict(d_model=32, n_layers=1, n_heads=4, subsampling_conv_channels=16)}  # fmt: skip


def build(who: str, sizes: dict, tokenizer: Path) -> EncDecCTCModelBPE:
    if who.startswith('LaCT'):
        encoder = {'_target_': 'nemo_lact.modules.LaCTEncoder', 'feat_in': 80, **sizes['lact']}
    else:
        encoder = {
            '_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'feat_in': 80, **sizes['fastconformer'],
            'subsampling': 'dw_striding', 'subsampling_factor': 8, 'subsampling_conv_chunking_factor': 1,
            'ff_expansion_factor': 4, 'conv_kernel_size': 9,
        }  # fmt: skip
    cfg = {
        'sample_rate': RATE,
        'tokenizer': {'dir': str(tokenizer), 'type': 'bpe'},
        'preprocessor': {
            '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor', 'sample_rate': RATE,
            'features': 80, 'normalize': 'per_feature', 'dither': 0.0, 'pad_to': 0,
        },
        'encoder': {**encoder, **CONTESTANTS[who]},
        'decoder': {
            '_target_': 'nemo.collections.asr.modules.ConvASRDecoder', 'feat_in': None, 'num_classes': -1,
            'vocabulary': [],
        },
        'validation_ds': {'manifest_filepath': None, 'sample_rate': RATE, 'shuffle': False},  # transcribe() reads it
    }  # fmt: skip
    torch.manual_seed(0)
    model = EncDecCTCModelBPE(OmegaConf.create(cfg))
    return model.to(DEVICE).eval()


@torch.no_grad()
def make_talkative(model: EncDecCTCModelBPE, speech: Path) -> None:
    """A decoder whose tokens follow what is heard, as many as in speech: random weights would give no text."""
    audio = torch.from_numpy(soundfile.read(speech, dtype='float32')[0])[None].to(DEVICE)
    features, length = model.preprocessor(input_signal=audio, length=torch.tensor([audio.size(1)], device=DEVICE))
    x = model.encoder(audio_signal=features, length=length)[0][0]  # [D, T]
    layer = model.decoder.decoder_layers[0]  # a 1 × 1 convolution
    layer.weight.copy_(torch.randn_like(layer.weight) / (layer.in_channels**0.5 * x.std(dim=1)[:, None]))
    layer.bias.copy_(-(layer.weight[..., 0] @ x.mean(dim=1)))
    layer.bias[-1] += 2.0  # blank


def recordings(count: int, seconds: int, folder: Path) -> list[str]:
    """WAV files of the bundled speech: one of `seconds`, or `count` of four fifths to six fifths of it."""
    whole = joined_speech(count * seconds * 1.2 / 60 if count > 1 else seconds / 60, folder)
    if count == 1:
        return [str(whole)]
    lengths = random.Random(0)
    paths = []
    with soundfile.SoundFile(whole) as speech:
        for number in range(count):
            samples = round(RATE * seconds * lengths.uniform(0.8, 1.2))
            paths.append(str(folder / f'{seconds}s_{number}.wav'))
            soundfile.write(paths[-1], speech.read(samples, dtype='int16'), RATE)
    return paths


def transcribe(model, files: list[str], kind: str) -> list[str]:
    with precision(kind):
        return [found.text for found in model.transcribe(files, batch_size=min(32, len(files)), verbose=False)]


def measure(model, files: list[str], kind: str) -> dict:
    """Milliseconds and memory of one call."""
    before, texts = clear(), []
    ms = clock(lambda: texts.extend(transcribe(model, files, kind)))
    if len(texts) != len(files):
        raise SystemExit(f'{len(texts)} texts for {len(files)} files')
    found = dict(ms=ms, characters=sum(map(len, texts)))
    return {**found, 'gib': peak() - before} if GPU else found


def main() -> None:
    parser = new_parser(__doc__, TASKS, CONTESTANTS, rounds=5)
    parser.set_defaults(contestants=[who for who in CONTESTANTS if 'compiled' not in who])  # compiling takes a minute
    args = parser.parse_args()
    report = new_report(args.commit)
    path = args.output and args.output / f'transcribe_speed_{"gpu" if GPU else "cpu"}.json'
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tokenizer = train_tokenizer([ROOT / 'data/asterisk_en/train.json'], folder, vocab_size=128)
        sizes = TINY if args.tiny else SIZES['base' if GPU else 'small']
        models = {who: build(who, sizes, tokenizer) for who in args.contestants}
        for model in models.values():
            make_talkative(model, joined_speech(0.5, folder))
        report['parameters'] = {who: sum(p.numel() for p in m.encoder.parameters()) for who, m in models.items()}
        for task in args.tasks:
            files = recordings(*TASKS[task], folder)
            seconds = sum(soundfile.info(file).duration for file in files)
            calls = {who: partial(measure, model, files, args.precision) for who, model in models.items()}
            results = take_turns(calls, args.rounds)
            for found in results.values():
                if 'ms' in found:
                    found['rtfx'] = seconds / found['ms'] * 1000
            add_rows(report, task, results, path, precision=args.precision, files=len(files), seconds=seconds)


if __name__ == '__main__':
    main()
