"""A policy: texts with a high reward, close to the anchor. PE-RLHF, arXiv:2403.10704;
REINFORCE with a baseline, Williams (1992)

    J        = E_{y ~ pi(. | x)} [ (1 - beta) r(x, y) ] - beta KL(pi(. | x) || anchor(. | x))
    R(x, y)  = (1 - beta) r(x, y) - beta sum_t [log pi(y_t) - log anchor(y_t)]         a constant
    loss     = - E sum_t (R - V_t) log pi(y_t | x, y_<t)
    V_t      = V(x, y_<t), trained by E (V_t - R)^2

The gradient of the loss is that of -J. Two terms drop out, because their mean is zero: the
derivative of log pi inside R, and the part with V_t, since V_t does not see y_t. Without a model
the optimum is pi* ~ anchor exp((1 - beta) / beta r). At beta = 1 it is the anchor, and at beta = 0
the anchor counts for nothing.

The anchor is the pretrained model itself. Policy, reward and value are adapters on its frozen
tensors (lora.twin), so there is one backbone and no copy. Adapters that start from a part of W0
(PiSSA and its like) keep what they leave frozen besides.

Note     R is of the whole text, not one per token: the text is one action.
"""

import torch
from tqdm import tqdm

from encoders.gpt import log_probs, sample
from errors import BadInput
from rlhf import preferences
from rlhf.preferences import LENGTH, OPENING, UNFINISHED, prompts, true_reward
from rlhf.reward import Descent


def returns(reward, log_ratio, beta):
    """R (B,) of rewards (B,) and log pi - log anchor of the texts, (B,)."""
    return (1 - beta) * reward - beta * log_ratio


def surrogate(log_p, advantage, mask):
    """- E sum_t (R - V_t) log pi(y_t): its gradient is that of -J. All (B, T), mask 1 at y."""
    return -(advantage.detach() * log_p * mask).sum(1).mean()


def kl(logits, anchor, mask):
    """KL(pi || anchor) of every text (B,): exact at each token that it visits, logits (B, T, V)."""
    p, q = logits.log_softmax(-1), anchor.log_softmax(-1)
    return ((p.exp() * (p - q)).sum(-1) * mask).sum(1)


class Policy:
    """A policy beside its anchor, and what both think of texts."""

    def __init__(self, backbone, model, temperature=1.0):
        self.backbone, self.model, self.temperature = backbone, model, temperature

    def write(self, start, generator, anchor=False):
        """Texts (B, T) that continue prompts (B, OPENING)."""
        return sample(self.backbone if anchor else self.model, self.backbone, start, LENGTH,
                      temperature=self.temperature, generator=generator)

    def logits(self, ids, anchor=False):
        """Of the next token at the temperature of the samples, (B, T, V)."""
        z = (self.backbone if anchor else self.model)(ids)
        return self.backbone.logits(z) / self.temperature

    def written(self, ids):
        """Which of ids[:, 1:] the policy wrote, (B, T - 1) of 0 and 1: to the first end token."""
        mask = (ids != self.backbone.pad)[:, 1:].float()
        mask[:, :OPENING - 1] = 0
        return mask

    def rewards(self, scorer, ids):
        """r (B,) of a reward model, and UNFINISHED for texts without an end."""
        finished = (ids == self.backbone.end).any(1)
        return torch.where(finished, scorer.score(ids), torch.tensor(UNFINISHED))


def train(policy, scorer, value, beta, lr, steps, batch, seed, look=None):
    """REINFORCE with the baseline `value`, a Scorer of its own; look(step) is called on the way."""
    generator = torch.Generator().manual_seed(seed)
    ours = Descent(policy.model, lr, steps)
    theirs = Descent(value.model, lr, steps, value.head.parameters())
    for step in (bar := tqdm(range(steps), f"policy, beta {beta:g}", leave=steps > 1)):
        ids = policy.write(prompts(policy.backbone, batch, seed * 100_003 + step), generator)
        mask = policy.written(ids)
        with torch.no_grad():
            anchor = log_probs(policy.logits(ids, anchor=True), ids)
            reward = policy.rewards(scorer, ids)
        log_p = log_probs(policy.logits(ids), ids)
        ratio = ((log_p.detach() - anchor) * mask).sum(1)
        R = returns(reward, ratio, beta)[:, None]                                    # (B, 1)
        V = value(ids)[:, :-1]                                       # at t - 1, before y_t
        ours.descend(surrogate(log_p, R - V, mask))
        theirs.descend(((V - R).square() * mask).sum() / mask.sum())
        if not torch.isfinite(R).all():
            raise BadInput(f"the returns are no numbers at step {step + 1}: take a smaller --lr")
        bar.set_postfix(reward=f"{reward.mean():.2f}", kl=f"{ratio.mean():.2f}", refresh=False)
        if look:
            look(step + 1)


@torch.no_grad()
def measure(policy, scorer, reward, split):
    """What a policy does on the prompts of val or test: win rate against the anchor by the hidden
    rule, ties a half each, true and proxy reward, KL to the anchor in nats, tokens of a text."""
    seed = preferences.SEEDS[split]
    generator = torch.Generator().manual_seed(seed)
    start = prompts(policy.backbone, preferences.HELD_OUT, seed)
    theirs = true_reward(reward, policy.backbone, policy.write(start, generator, anchor=True))
    ids = policy.write(start, generator)
    ours, mask = true_reward(reward, policy.backbone, ids), policy.written(ids)
    wins = (ours > theirs).double() + 0.5 * (ours == theirs).double()
    divergence = kl(policy.logits(ids)[:, :-1], policy.logits(ids, anchor=True)[:, :-1], mask)
    return {"win": wins.mean().item(), "true": ours.mean().item(),
            "proxy": policy.rewards(scorer, ids).mean().item() if scorer else None,
            "kl": divergence.mean().item(), "tokens": mask.sum(1).mean().item()}


