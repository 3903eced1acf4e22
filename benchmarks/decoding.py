#!/usr/bin/env python3
"""What a language model gains in decoding: WER and CER greedy and with NeMo's beam search, numbers chosen on dev.

    python benchmarks/decoding.py model.nemo --data data/asterisk_en --output benchmarks/results/decoding.json

The language model is estimated from the texts of train.json, and those of --more-texts, each once. Weight, token bonus
and order are those with the lowest WER on dev.json; test.json is then transcribed once with them. Intervals are 95%
bootstrap intervals over utterances; `time_ratio` is the time of the search, feature extraction and encoder included,
over that of greedy decoding in the same process.
"""

import argparse
import json
import platform
import random
import tempfile
import time
from itertools import product
from pathlib import Path

ORDERS = (4, 6, 8)
WEIGHTS = (0.3, 0.5, 0.8, 1.0, 1.2)
BONUSES = (0.5, 1.0, 1.5, 2.0)
RESAMPLES = 2000


def interval(rows: list[dict]) -> list[float]:
    """95% bootstrap interval of the WER over utterances."""
    rng, rates = random.Random(0), []
    errors = [row['substitutions'] + row['insertions'] + row['deletions'] for row in rows]
    words = [len(row['text'].split()) for row in rows]
    for _ in range(RESAMPLES):
        drawn = rng.choices(range(len(rows)), k=len(rows))
        rates.append(sum(errors[i] for i in drawn) / sum(words[i] for i in drawn))
    rates.sort()
    return [round(rates[int(share * RESAMPLES)], 4) for share in (0.025, 0.975)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path)
    parser.add_argument('--data', type=Path, default=Path('data/asterisk_en'), help='train.json, dev.json, test.json')
    parser.add_argument('--beam-size', type=int, default=16)
    parser.add_argument('--more-texts', nargs='*', default=[], help='for the language model: .txt files, manifests')
    parser.add_argument('--output', type=Path)
    args = parser.parse_args()

    import nemo
    import torch
    from nemo.utils import logging

    from nemo_lact import decoding
    from nemo_lact.evaluation import score
    from nemo_lact.transcription import collect, load_model, transcribe

    logging.setLevel(logging.ERROR)
    model = load_model(args.model)

    def measured(split: str) -> dict:
        rows = collect([args.data / f'{split}.json'])
        began = time.perf_counter()
        rows = transcribe(model, rows, batch_size=8, progress=False)
        seconds = time.perf_counter() - began
        summary, rows = score(rows)
        return {'wer': summary['wer'], 'cer': summary['cer'], 'interval': interval(rows), 'seconds': seconds}

    measured('dev')  # warm up
    greedy = {split: measured(split) for split in ('dev', 'test')}
    texts = decoding.texts_of([args.data / 'train.json', *args.more_texts])
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        for order in ORDERS:
            decoding.make_language_model(model, texts, Path(folder, f'{order}.arpa'), order)
        for order, weight, bonus in product(ORDERS, WEIGHTS, BONUSES):
            decoding.use_language_model(model, Path(folder, f'{order}.arpa'), weight, args.beam_size, bonus)
            dev = measured('dev')
            tried.append({'order': order, 'weight': weight, 'token_bonus': bonus, 'wer': dev['wer'], 'cer': dev['cer']})
            print('dev', tried[-1], flush=True)
        best = min(tried, key=lambda setting: (setting['wer'], setting['cer']))
        arpa = Path(folder, f'{best["order"]}.arpa')
        decoding.use_language_model(model, arpa, best['weight'], args.beam_size, best['token_bonus'])
        with_lm = {split: measured(split) for split in ('dev', 'test')}
    ratio = with_lm['test'].pop('seconds') / greedy['test'].pop('seconds')
    for results in (greedy, with_lm):
        results['dev'].pop('seconds')
    result = {
        'greedy': greedy,
        'with_lm': with_lm,
        'chosen_on_dev': best,
        'beam_size': args.beam_size,
        'time_ratio': round(ratio, 2),
        'texts': len(texts),
        'tried_on_dev': tried,
        'software': {'nemo': nemo.__version__, 'torch': torch.__version__, 'python': platform.python_version()},
    }
    print(json.dumps({key: value for key, value in result.items() if key != 'tried_on_dev'}, indent=2))
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
