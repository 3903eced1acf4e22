"""decoding.py: texts to tokens, NeMo's beam search with the model made from them, and refusals."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from nemo_lact import decoding, lm

LABELS = list(" abcdefghijklmnopqrstuvwxyz'")
BLANK = len(LABELS)


def build(labels=LABELS):
    from nemo.collections.asr.models import EncDecCTCModel

    encoder = dict(n_layers=1, d_model=16, n_heads=2, num_lact_heads=2, subsampling_conv_channels=4)
    windows = dict(subsampling_factor=4, att_context_size=[8, 8], lact_chunk_size=24)
    cfg = {
        'preprocessor': {
            '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
            'features': 16,
            'dither': 0.0,
        },
        'encoder': {'_target_': 'nemo_lact.modules.LaCTEncoder', 'feat_in': 16, **encoder, **windows},
        'decoder': {
            '_target_': 'nemo.collections.asr.modules.ConvASRDecoder',
            'feat_in': None,
            'num_classes': len(labels),
            'vocabulary': labels,
        },
    }
    return EncDecCTCModel(OmegaConf.create(cfg)).eval()


@pytest.fixture(scope='module')
def model():
    return build()


@pytest.fixture
def greedy(model):
    """The model, given back with the decoding it had."""
    before = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    yield model
    model.change_decoding_strategy(before, verbose=False)


def heard(text: str, doubt: dict[int, str] | None = None) -> torch.Tensor:
    """Log-probabilities [frames, tokens] of a text: each letter, then blank. `doubt` adds a likelier letter."""
    probabilities = torch.full((2 * len(text), BLANK + 1), 1e-4)
    for i, letter in enumerate(text):
        probabilities[2 * i, LABELS.index(letter)] = 0.4
        probabilities[2 * i + 1, BLANK] = 0.9
        for other in (doubt or {}).get(i, ''):
            probabilities[2 * i, LABELS.index(other)] = 0.5
    return (probabilities / probabilities.sum(1, keepdim=True)).log()


def decoded(model, rows) -> list[str]:
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # log-probability 0 for everything
    return [h.text for h in model.decoding.ctc_decoder_predictions_tensor(padded, decoder_lengths=lengths)]


def test_texts_come_from_manifests_and_lines(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps({'audio_filepath': 'x', 'duration': 1, 'text': 'one  two'}) + '\n')
    (tmp_path / 'b.txt').write_text('three\n\n four \n')
    assert decoding.texts_of([tmp_path / 'a.json', tmp_path / 'b.txt']) == ['one two', 'three', 'four']


@pytest.mark.parametrize(
    'name, content, error, message',
    [
        ('a.json', '{"audio_filepath": "x"}\n', ValueError, "row 1: no 'text'"),
        ('a.txt', '\n \n', ValueError, 'no text in'),
        ('a.txt', b'\xff\xfe\xfa', ValueError, 'no UTF-8'),
        ('a.csv', 'one', ValueError, 'end with .txt, .json, .jsonl'),
        ('a.txt', None, FileNotFoundError, 'no text file'),
        ('a.json', None, FileNotFoundError, 'no manifest'),
    ],
)
def test_texts_that_cannot_be_had_are_named(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        decoding.texts_of([tmp_path / name])


def test_characters_become_tokens_and_foreign_ones_leave_a_text_out(model):
    tokens, left_out = decoding.tokens_of(model, ['A b', 'caf\u00e9', 'z'])
    assert tokens == [[1, 0, 2], [26]] and left_out == 1


def test_capitals_count_where_the_model_has_them():
    model = build([*LABELS, 'A'])
    assert decoding.tokens_of(model, ['A b', 'B']) == ([[28, 0, 2]], 1)


def test_subwords_become_tokens(tmp_path):
    """With a SentencePiece tokenizer as NeMo wraps it, in a stand-in for the model that owns it."""
    import sentencepiece
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    text = ['thank you for calling', 'please hold the line', 'for you']
    (tmp_path / 'text.txt').write_text('\n'.join(text * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / 'text.txt'), model_prefix=str(tmp_path / 't'), vocab_size=24, model_type='bpe'
    )
    tokenizer = SentencePieceTokenizer(str(tmp_path / 't.model'))

    class Model:
        change_decoding_strategy = None
        decoder = type('Decoder', (), {'vocabulary': [''] * tokenizer.vocab_size})

    Model.tokenizer = tokenizer
    tokens, left_out = decoding.tokens_of(Model(), ['hold you', 'h\u00f6ld'])
    assert [tokenizer.ids_to_text(ids) for ids in tokens] == ['hold you'] and left_out == 1
    made = decoding.make_language_model(Model(), text, tmp_path / 'lm.arpa', order=3)
    assert made['texts'] == 3 and made['left_out'] == 0
    decoding.check_lm_file(tmp_path / 'lm.arpa', tokenizer.vocab_size)


def test_the_language_model_settles_what_was_heard_badly(greedy, tmp_path):
    rows = [heard('the cat sat', doubt={4: 'k', 8: 'z'})]
    assert decoded(greedy, rows) == ['the kat zat']
    made = decoding.make_language_model(greedy, ['The cat sat', 'a cat'] * 5, tmp_path / 'lm.arpa', order=4)
    assert made == {'texts': 10, 'left_out': 0, 'tokens': 80, 'ngrams': made['ngrams']}
    decoding.use_language_model(greedy, tmp_path / 'lm.arpa')
    assert decoded(greedy, rows) == ['the cat sat']
    decoding.use_language_model(greedy, tmp_path / 'lm.arpa', weight=0.0, token_bonus=0.0)
    assert decoded(greedy, rows) == ['the kat zat']


def test_the_score_is_the_sum_that_is_documented(greedy, tmp_path):
    """Against a search through all texts of up to three letters, with the language model scored by lm.py."""
    from itertools import product

    model = lm.estimate([([1, 2, 3], 4), ([2, 1], 2), ([3, 3], 1)], len(LABELS), 3)
    lm.write_arpa(model, tmp_path / 'lm.arpa')
    frames = torch.randn(6, BLANK + 1).mul(2)
    frames[:, 4:BLANK] = -30  # only blank, ' ', 'a', 'b', 'c' can be meant
    frames = frames.log_softmax(-1)
    weight, bonus = 0.7, 0.5

    def score(tokens):
        target = torch.tensor([tokens], dtype=torch.long)
        lengths = (torch.tensor([len(frames)]), torch.tensor([len(tokens)]))
        heard_so = -torch.nn.functional.ctc_loss(frames[:, None], target, *lengths, blank=BLANK, reduction='sum')
        return heard_so.item() + weight * model.log_probability(tokens) + bonus * len(tokens)

    best = max((list(t) for n in range(5) for t in product(range(4), repeat=n)), key=score)
    decoding.use_language_model(greedy, tmp_path / 'lm.arpa', weight, beam_size=64, token_bonus=bonus)
    assert decoded(greedy, [frames]) == [''.join(LABELS[token] for token in best).strip()]


def test_batch_mates_change_nothing(greedy, tmp_path):
    decoding.make_language_model(greedy, ['the cat sat', 'on the mat'], tmp_path / 'lm.arpa', order=3)
    decoding.use_language_model(greedy, tmp_path / 'lm.arpa', token_bonus=3.0)
    rows = [torch.randn(frames, BLANK + 1).mul(3).log_softmax(-1) for frames in (40, 23, 7, 1)]
    assert decoded(greedy, rows) == [decoded(greedy, [row])[0] for row in rows]


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('lm.arpa', 'mmap lm http://kheafield.com/code format version 5\n', 'KenLM binaries'),
        ('lm.bin', '\\data\\\n', 'as .arpa or .nemo files'),
        ('lm.arpa', '\\data\\\nngram 1=2\n\n\\1-grams:\n-1\thello\t0\n-1\t<s>\t0\n\\2-grams:\n', "lists 'hello'"),
        ('lm.arpa', f'\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t{chr(100 + 28)}\t0\n\\2-grams:\n', 'number 29'),
        ('lm.arpa', f'\\data\\\nngram 1=1\n\n\\1-grams:\n-1\t{chr(100)}\n\\end\\\n', 'no 2-grams'),
    ],
)
def test_other_files_are_refused(greedy, tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding='utf-8')
    with pytest.raises(ValueError, match=message):
        decoding.use_language_model(greedy, tmp_path / name)


def test_other_mistakes_are_named(greedy, tmp_path):
    with pytest.raises(FileNotFoundError, match='no language model at'):
        decoding.use_language_model(greedy, tmp_path / 'lm.arpa')
    with pytest.raises(ValueError, match='beam_size=0'):
        decoding.use_language_model(greedy, tmp_path / 'lm.arpa', beam_size=0)
    with pytest.raises(ValueError, match='must end with .arpa'):
        decoding.make_language_model(greedy, ['a'], tmp_path / 'lm.bin')
    with pytest.raises(ValueError, match='none of the 1 texts'):
        decoding.make_language_model(greedy, ['\u6f22'], tmp_path / 'lm.arpa')
    with pytest.raises(ValueError, match='Linear is no CTC model'):
        decoding.use_language_model(torch.nn.Linear(1, 1), tmp_path / 'lm.arpa')


def test_a_nemo_file_of_the_language_model_works_too(greedy, tmp_path):
    from nemo.collections.asr.parts.submodules.ngram_lm import NGramGPULanguageModel

    decoding.make_language_model(greedy, ['the cat sat'] * 5, tmp_path / 'lm.arpa', order=4)
    NGramGPULanguageModel.from_file(tmp_path / 'lm.arpa', vocab_size=len(LABELS)).save_to(str(tmp_path / 'lm.nemo'))
    decoding.use_language_model(greedy, tmp_path / 'lm.nemo')
    assert decoded(greedy, [heard('the cat sat', doubt={4: 'k'})]) == ['the cat sat']
