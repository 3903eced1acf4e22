"""Weights between those of two models."""

from pathlib import Path

import torch

from nemo_lact.transcription import load_model


def checked(share: float) -> float:
    """
    Raises:
        ValueError: the share is not above 0 and up to 1.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f'blend={share}; give the share of the tuned weights, above 0 and up to 1')
    return share


def blend(tuned: str | Path, first: str | Path, share: float, target: str | Path) -> None:
    """Write a model of `share` of the tuned weights, the rest of those that the tuning began with.

    It loses less of what the first model knew. All but the weights is of `tuned`. Source: arXiv 2109.01903.

    Args:
        tuned, first, target: .nemo files.

    Raises:
        FileNotFoundError, ValueError: a file is missing or no model, they differ in their weights, or a wrong share.
    """
    checked(share)
    model, start = load_model(tuned, 'cpu'), load_model(first, 'cpu').state_dict()
    weights = model.state_dict()
    other = [name for name in weights if name not in start or start[name].shape != weights[name].shape]
    if other:
        raise ValueError(f'{first} has not the weights of {tuned}: {len(other)} of {len(weights)}, like {other[0]}')
    model.load_state_dict({
        name: torch.lerp(start[name], weight, share) if weight.is_floating_point() else weight
        for name, weight in weights.items()
    })  # fmt: skip
    model.save_to(str(target))
