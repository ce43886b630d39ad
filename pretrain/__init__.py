"""The built-in checkpoints, made from nothing: `python -m pretrain`."""
