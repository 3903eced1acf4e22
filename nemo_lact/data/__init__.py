"""From raw corpora to NeMo manifests, long rows for training, and problems found before training.

Every module stands alone and imports neither torch nor NeMo before a function needs them; `nemo-lact data` is cli.py.
"""
