"""Contenders take turns: a slow moment of the machine hits all of them alike.

Ratios are formed within a round; every other round goes backwards, so that no contender always
runs after the same one. For what glibc does with freed memory, see experiment/measure.py.
"""

import contextlib
import ctypes
import statistics
import time

import torch
from tqdm import tqdm


def conditions(rounds):
    """What every table of times says about its making."""
    return f"{rounds} rounds, {torch.get_num_threads()} threads, torch {torch.__version__}"


def turns(contenders, rounds):
    """{name: seconds of each round} of functions without arguments, after one call to warm up."""
    for run in contenders.values():
        run()
    seconds = {name: [] for name in contenders}
    for turn in tqdm(range(rounds), desc="rounds"):
        for name in list(contenders)[::-1 if turn % 2 else 1]:
            began = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds, name, other):
    """Median over the rounds of name / other."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other]))


def quartiles(seconds, name, other):
    """The median of name / other over the rounds, and the same with its middle half, as text."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds[name], seconds[other])])
    return middle, f"{middle:.2f} ({low:.2f} to {high:.2f})"


def set_allocator(trim_threshold, mmap_threshold):
    """glibc: bytes of freed memory it keeps, and the size from which it asks the system anew."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, trim_threshold), mallopt(-3, mmap_threshold)


def keep_freed_memory():
    """From now on reuse freed memory, pages and all, up to the largest sizes glibc allows."""
    set_allocator(2 ** 31 - 1, 2 ** 25)


def stop_keeping_freed_memory():
    """From now on return freed tensors to the system at once: exact peaks, slower code."""
    set_allocator(2 ** 17, 2 ** 16)
