"""What a step of preference tuning costs with LoRA, as a ratio to full fine-tuning: time, memory.

PE-RLHF (arXiv:2403.10704) reports, for models of billions of parameters: reward models up to 90 %
faster with up to 50 % less memory, policies up to 30 % faster with 27 % less.
"""

import statistics

import torch

import encoders
import lora
from bench.steps import kept
from bench.turns import conditions, quartiles, turns
from encoders.gpt import log_probs
from experiment import tables
from linearize import adapt
from rlhf import policy, preferences, reward


class Tuner:
    """A step of the reward model and one of the policy, with an adapter on the built-in GPT."""

    def __init__(self, adapter, batch):
        self.backbone = encoders.load("gpt").requires_grad_(False)
        draw = lambda: torch.Generator().manual_seed(0)
        make = lambda: reward.Scorer(self.backbone, adapter, "off", "all", draw())
        self.judge, self.value = make(), make()
        self.preferred, self.other = preferences.pairs(self.backbone, "friendly", batch, 0)
        model, _ = adapt(lora.twin(self.backbone), adapter, generator=draw())
        self.policy, self.batch = policy.Policy(self.backbone, model), batch
        self.trainable = sum(p.numel() for p in lora.trainable(model).values())
        self.frozen = {p.untyped_storage().data_ptr() for p in self.backbone.parameters()}

    def reward_step(self):
        """One step on a batch of pairs."""
        reward.fit(self.judge, self.preferred, self.other, 1e-4, 1, self.batch, 0)

    def policy_step(self):
        """Samples, their rewards, and one step of policy and value."""
        policy.train(self.policy, self.judge, self.value, 0.1, 1e-4, 1, self.batch, 0)

    def memory(self, loss):
        """Bytes of gradients, Adam's two moments, and what the backward pass of a loss needs."""
        return 3 * 4 * self.trainable + kept(loss, self.frozen)

    def reward_loss(self):
        """Bradley-Terry on the pairs."""
        return reward.bradley_terry(self.judge.score(self.preferred), self.judge.score(self.other))

    def policy_loss(self):
        """REINFORCE on the preferred texts, for its memory alone, without that of V."""
        log_p = log_probs(self.policy.logits(self.preferred), self.preferred)
        return policy.surrogate(log_p, log_p, self.policy.written(self.preferred))


def compare(batch, rounds):
    """Print the table of both steps, LoRA and full fine-tuning in turns."""
    tuners, lines = {name: Tuner(name, batch) for name in ("full", "lora")}, []
    for step, loss in (("reward_step", "reward_loss"), ("policy_step", "policy_loss")):
        seconds = turns({name: getattr(t, step) for name, t in tuners.items()}, rounds)
        bytes_of = {name: t.memory(getattr(t, loss)) for name, t in tuners.items()}
        for name, tuner in tuners.items():
            lines.append([step.replace("_", " "), name, f"{tuner.trainable:,}",
                          f"{1e3 * statistics.median(seconds[name]):.0f}",
                          quartiles(seconds, name, "full")[1], f"{bytes_of[name] / 2 ** 20:.1f}",
                          f"{bytes_of[name] / bytes_of['full']:.2f}"])
    print(f"batch {batch}, {conditions(rounds)}")
    print(tables.table(["step", "adapter", "trainable", "ms", "time / full", "MiB", "MiB / full"],
                       lines))
