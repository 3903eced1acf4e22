"""NeMo's mel features block by block, equal to those of the whole recording."""

import copy

import torch
from nemo.collections.asr.parts.preprocessing.features import FilterbankFeatures
from torch import Tensor

MARGIN = 4  # feature frames of audio given on the left: windows and pre-emphasis reach over less than three


class FeatureBlocks:
    """Features of B recordings that begin together.

    Args:
        preprocessor: the model's AudioToMelSpectrogramPreprocessor. Its normalisation over time is left out.
        samples: [B] int64, samples of each recording in all; None if not known yet (live).

    Raises:
        ValueError: another preprocessor, one with frame splicing or exact padding, or another normalisation than
            per_feature (see `Moments`) and NA.
    """

    def __init__(self, preprocessor, samples: Tensor | None = None):
        featurizer = getattr(preprocessor, 'featurizer', None)
        if not isinstance(featurizer, FilterbankFeatures) or featurizer.frame_splicing > 1 or featurizer.exact_pad:
            raise ValueError(
                f'{type(preprocessor).__name__} cannot work block by block; use AudioToMelSpectrogramPreprocessor '
                f'with frame_splicing 1 and without exact_pad, or transcribe whole recordings'
            )
        self.normalize = None if featurizer.normalize in (None, 'NA') else featurizer.normalize
        if self.normalize not in (None, 'per_feature'):
            raise ValueError(f"normalize={self.normalize!r} cannot work block by block; use 'per_feature' or 'NA'")
        self.featurizer = copy.deepcopy(featurizer).eval()
        self.featurizer.normalize, self.featurizer.pad_to = None, 0
        self.hop, self.reach = featurizer.hop_length, featurizer.n_fft // 2
        self.samples = samples
        self.audio: Tensor | None = None  # [B, .] from sample `base` on
        self.base = self.done = 0  # samples dropped, frames given

    def lengths(self) -> Tensor:
        """[B] feature frames of each recording."""
        return self.featurizer.get_seq_len(self.samples.float()) * (self.samples > 0)

    @torch.no_grad()
    def feed(self, audio: Tensor, last: bool) -> Tensor:
        """[B, n] more samples -> [B, F, m] more frames. Frames past a row's end hold the pad value."""
        self.audio = audio if self.audio is None else torch.cat([self.audio, audio], dim=1)
        end = self.base + self.audio.size(1)
        if last and self.samples is None:
            self.samples = torch.full((audio.size(0),), end, device=audio.device)
        ready = end // self.hop if last else max(0, (end - self.reach) // self.hop + 1)
        if ready <= self.done:
            return audio.new_zeros(audio.size(0), self.featurizer.nfilt, 0)
        first = max(0, self.done - MARGIN)
        part = self.audio[:, first * self.hop - self.base :]
        if self.samples is None:
            inside = torch.full((part.size(0),), part.size(1), device=part.device)
        else:
            inside = (self.samples - first * self.hop).clamp(min=0, max=part.size(1))
        # The class's forward: the copy's own is, as NeMo sets it, still that of the original.
        features = FilterbankFeatures.forward(self.featurizer, part, inside)[0]  # [B, F, .]
        features = features[:, :, self.done - first : ready - first]
        keep = max(0, ready - MARGIN) * self.hop
        if keep > self.base:
            self.audio, self.base = self.audio[:, keep - self.base :].clone(), keep
        self.done = ready
        return features


class Moments:
    """`normalize: per_feature` over whole recordings, gathered block by block as NeMo's `normalize_batch` defines it.

    Args:
        length: [B] feature frames of each recording.
    """

    def __init__(self, length: Tensor):
        self.length, self.at = length, 0
        self.guess = self.first = self.second = None  # [B, F, 1] float64

    def add(self, features: Tensor) -> None:
        """[B, F, m] the next frames."""
        t = self.at + torch.arange(features.size(2), device=features.device)
        inside = (t < self.length[:, None])[:, None]  # [B, 1, m]
        x = features.double()
        if self.guess is None:  # sums around a first guess of the mean: less cancellation
            n = inside.sum(dim=2, keepdim=True).clamp(min=1)
            self.guess = (x * inside).sum(dim=2, keepdim=True) / n
            self.first = self.second = torch.zeros_like(self.guess)
        y = (x - self.guess) * inside
        self.first, self.second = self.first + y.sum(2, keepdim=True), self.second + (y * y).sum(2, keepdim=True)
        self.at += features.size(2)

    def __call__(self, features: Tensor) -> Tensor:
        """[B, F, m] -> [B, F, m] of mean 0 and deviation 1 over each recording."""
        n = self.length.clamp(min=1)[:, None, None].double()
        mean = self.guess + self.first / n
        square = (self.second - self.first * self.first / n).clamp(min=0)
        std = torch.sqrt(square / (n - 1).clamp(min=1)) + 1e-5
        return ((features - mean) / std).to(features.dtype)
