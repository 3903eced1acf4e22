"""Does the memory's learning help? Error rates of one model under different rules for its memory.

    from nemo_lact.adaptation import measure
    found = measure(model, rows)                              # rows as `transcription.manifest_rows` gives them
    found['overall']['differences'][0]['wer_relative']        # learning against frozen, with its interval

docs/adaptation.md says what each part means; `nemo-lact evaluate --adaptation` shows it.
"""

from nemo_lact.adaptation import report
from nemo_lact.adaptation.measuring import RULES, measure
from nemo_lact.adaptation.rates import compare

__all__ = ['RULES', 'compare', 'measure', 'report']
