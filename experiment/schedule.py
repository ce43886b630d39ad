"""What a step sees: how many there are, its batch and its rate. All are functions of its number."""

import math

import torch


def total_steps(setting, counts):
    """Optimizer steps of a run on tasks with `counts` training examples, which take turns.

    An epoch is n // batch steps; of several tasks, those of the largest.
    """
    epoch = max(n // min(setting["batch"], n) for n in counts)
    return (setting["steps"] or setting["epochs"] * epoch) * len(counts)


def batch_rows(n, batch, step, seed):
    """Rows of the batch of step 0, 1, ...: a permutation per epoch, a function of its arguments."""
    batch = min(batch, n)
    epoch, i = divmod(step, n // batch)
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(n, generator=generator)[i * batch:(i + 1) * batch]


def schedule(step, total):
    """Factor on the learning rate at step 0, 1, ...: 10 % linear warm-up, then cosine to zero."""
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, total - warm))
