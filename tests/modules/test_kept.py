"""What is made from parameters is made again when they change."""

import torch

from nemo_lact.modules.kept import KeptFor


def test_made_again_only_after_a_change():
    kept, made, layer = KeptFor(), [], torch.nn.Linear(2, 2)

    def get(key='a'):
        return kept.get(layer, key, layer.parameters(), lambda: made.append(1) or len(made))

    assert get() == get() == 1
    with torch.no_grad():
        layer.bias.add_(1)
    assert get() == get() == 2
    layer.weight.data = layer.weight.data.clone()
    assert get() == 3
    assert get('b') == get('b') == 4
    kept.drop(layer)
    assert get('b') == 5


def test_tensors_of_inference_mode_are_not_trusted():
    with torch.inference_mode():
        layer = torch.nn.Linear(2, 2)
    kept, made = KeptFor(), []
    for n in (1, 2):
        assert kept.get(layer, 'a', layer.parameters(), lambda: made.append(1) or len(made)) == n
