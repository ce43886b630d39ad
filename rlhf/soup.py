"""Rewarded soups: one policy per reward, and every compromise between them. arXiv:2306.04488

    theta(alpha) = (1 - alpha) theta_a + alpha theta_b,     0 <= alpha <= 1

theta_a and theta_b start from one pretrained model and are tuned on a reward each; nothing is
trained for the compromises. The rule is `interpolation` of rules/arithmetic.py, in either space of
experiment/spaces.py. Any other rule without data merges the same two runs.

Note     the authors' code averages the factors A and B of LoRA: that is --space adapter.
"""

import torch
from tqdm import tqdm

import merge
import rules  # noqa: F401  (fills merge.RULES)
from encoders.gpt import sample
from experiment import run_folder, spaces, tables
from rlhf.preferences import LENGTH, REWARDS, SEEDS, prompts, true_reward

PROMPTS = 2000                                   # of test; the points of a front lie close together


@torch.no_grad()
def rewards_of(model, gpt):
    """{reward: its true mean} of what a policy writes on the prompts of test, at temperature 1;
    gpt is the pretrained model."""
    seed = SEEDS["test"]
    generator, start = torch.Generator().manual_seed(seed), prompts(gpt, PROMPTS, seed)
    ids = sample(model, gpt, start, LENGTH, generator=generator)
    return {name: true_reward(name, gpt, ids).mean().item() for name in REWARDS}


def front(runs, space, points, others):
    """Print and return the rows [name, alpha, rewards ...] along the line between two runs.

    space    "weight", "adapter" or None, the runs' own
    points   how many values of alpha from 0 to 1;  others   rules to merge by besides
    """
    one = spaces.vectors(runs, space or spaces.default(runs))
    ways = [("interpolation", {"alpha": i / (points - 1)}) for i in range(points)]
    gpt = run_folder.base_encoder(runs[0])
    rows = [["anchor", "-", *rewards_of(gpt, gpt).values()]]
    for rule, keywords in tqdm([*ways, *((rule, {}) for rule in others)], "soups"):
        model = one.apply(merge.RULES[rule](one.base, one.taus, **keywords))
        rows.append([rule, keywords.get("alpha", "-"), *rewards_of(model, gpt).values()])
    print(tables.table(["policy", "alpha", *REWARDS], rows))
    return rows
