"""What NeMo sees: the encoder and its options."""

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.lact_encoder import LaCTEncoder

__all__ = ['LaCTEncoder', 'LaCTEncoderConfig']
