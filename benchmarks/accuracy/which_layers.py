"""Which layers' memories are worth something: WER with all learning, none, only one, all but one.

    python benchmarks/accuracy/which_layers.py early_memories_self-conditioned-0.nemo \\
        --contestant "early memories, self-conditioned" --corpus CORPUS --sets "accents, 2 min, clean" "2 min, clean" \\
        --output which_layers.json
"""

import argparse
from datetime import date
from pathlib import Path

from contestants import config
from grafts import ALL
from score import count, plan, test_sets, transcribe
from symbols import keep

from nemo_lact import ops
from nemo_lact.info import config_and_weights


def switch(memory, learns: dict[int, bool], layer: int) -> None:
    """The memory of a layer learns only while `learns[layer]`."""
    usual = memory.forward

    def forward(x, q, k, v, valid, cos, sin, adaptation, *rest):
        return usual(x, q, k, v, valid, cos, sin, adaptation and learns[layer], *rest)

    memory.forward = forward


def choices(layers: list[int]) -> dict[str, list[int]]:
    """Name -> layers that learn."""
    found = {'all': layers, 'none': []}
    found |= {f'only {i}': [i] for i in layers}
    return found | {f'all but {i}': [j for j in layers if j != i] for i in layers}


def measure(model, corpus: Path, sets: list[str], tell=lambda name, rates: None) -> dict[str, dict[str, float]]:
    """Which learn -> test set -> WER."""
    rows = {name: (some, noisy) for name, some, noisy in test_sets(corpus, 1e9, sets)}
    memories = {i: layer.mixer.memory for i, layer in enumerate(model.encoder.layers) if layer.mixer.memory is not None}
    learns, results = dict.fromkeys(memories, True), {}
    for layer, memory in memories.items():
        switch(memory, learns, layer)
    for name, wanted in choices(list(memories)).items():
        learns.update({layer: layer in wanted for layer in memories})
        results[name] = {}
        for which, (some, noisy) in rows.items():
            results[name][which] = count(some, transcribe(model, some, noisy, autocast=False))['wer']
        tell(name, results[name])
    for memory in memories.values():
        del memory.forward
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path, help='a .nemo of train.py')
    parser.add_argument('--contestant', choices=list(ALL), metavar='contestant', required=True)
    parser.add_argument('--corpus', type=Path, required=True, help='of corpus.py, with the tokenizer of the training')
    parser.add_argument('--sets', nargs='+', required=True, help='test sets, or how their names begin')
    parser.add_argument('--output', type=Path, required=True, help='JSON; a result of the same contestant is replaced')
    args = parser.parse_args()
    try:
        plan(args.corpus, args.sets)
    except ValueError as wrong:
        parser.error(f'--sets: {wrong}')
    recipe = ALL[args.contestant]
    model = recipe.model(config(recipe, recipe.encoder, args.corpus / 'tokenizer', 1e-3, 1)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in config_and_weights(args.model)[1].items()})
    ops.use_implementation('reference')  # the contestants' own memories

    def tell(name: str, rates: dict[str, float]) -> None:
        print(f'{name:10s}', '  '.join(f'{which}: {rate:.2%}' for which, rate in rates.items()), flush=True)

    found = dict(contestant=args.contestant, date=date.today().isoformat())
    found |= dict(wer=measure(model, args.corpus, args.sets, tell))
    keep(args.output, found)


if __name__ == '__main__':
    main()
