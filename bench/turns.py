"""Contenders take turns: a slow moment of the machine hits all of them alike.

Ratios are formed within a round; every other round goes backwards, so that no contender always
runs after the same one.
"""

import statistics
import time

from tqdm import tqdm


def turns(contenders, rounds):
    """{name: seconds of each round} of functions without arguments."""
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
