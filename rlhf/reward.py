"""A reward model: what people prefer, learnt from pairs. PE-RLHF, arXiv:2403.10704;
2203.02155, eq. 1

    loss = - E log sigmoid(r(x, y_w) - r(x, y_l)),       r(x, y) = mean over t of w . z_t + b

Shapes   z_t (D,) hidden state at token t of y · w (D,), b trained with the adapters, the
         backbone frozen · x the prompt, y_w the preferred and y_l the other continuation
Differs  The usual r is read at the end token alone. Our small backbone never had to predict what
         follows an end, so that state says little; we take the mean over the tokens.
Note     only differences per prompt are learnt: r + f(x) has the same loss. `standardise` fixes
         mean 0 and standard deviation 1 on texts of the anchor, so that beta has a meaning.
"""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import lora
from linearize import adapt, encoder_of, param_groups
from rlhf.preferences import OPENING


class Scorer(nn.Module):
    """ids (B, T) -> one number at every token, (B, T), from adapters on the shared backbone.

    Both the reward model and the value function are this.
    """

    def __init__(self, backbone, adapter, reading, targets, generator, **hp):
        super().__init__()
        self.pad = backbone.pad
        self.model, _ = adapt(lora.twin(backbone), adapter, reading, targets, generator=generator,
                              **hp)
        self.head = nn.Linear(backbone.width, 1)
        nn.init.zeros_(self.head.weight), nn.init.zeros_(self.head.bias)
        self.mean, self.std = 0.0, 1.0

    def forward(self, ids):
        return (self.head(self.model(ids))[..., 0] - self.mean) / self.std           # (B, T)

    def score(self, ids):
        """Of what follows the prompts, (B,): the mean over its tokens."""
        real = (ids != self.pad).float()
        real[:, :OPENING] = 0
        return (self(ids) * real).sum(1) / real.sum(1)

    @torch.no_grad()
    def standardise(self, ids):
        """Shift and scale, so that these texts have mean 0 and standard deviation 1."""
        scores = self.score(ids)
        self.mean, self.std = self.mean + self.std * scores.mean(), self.std * scores.std()


class Descent:
    """AdamW on the adapters of a model and what is given besides, with the adapters' hooks; the
    learning rate falls linearly to zero."""

    def __init__(self, model, lr, steps, others=()):
        self.layers, self.step, self.steps = [*lora.adapters(encoder_of(model)).values()], 0, steps
        self.hooks = type(self.layers[0])
        self.hooks.before_training(self.layers, steps)
        groups = param_groups(model, lr, 0.0)
        groups += [{"params": list(others), "lr": lr, "weight_decay": 0.0}] if others else []
        self.adam = torch.optim.AdamW([g | {"start": g["lr"]} for g in groups])
        self.params = [p for g in groups for p in g["params"]]

    def descend(self, loss):
        """One step down the gradient of the loss."""
        for g in self.adam.param_groups:
            g["lr"] = g["start"] * (1 - self.step / self.steps)
        self.step += 1
        loss = loss + sum(layer.regularizer() for layer in self.layers)
        self.adam.zero_grad()
        loss.backward()
        self.hooks.after_backward(self.layers, self.step, self.steps)
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adam.step()
        self.hooks.after_step(self.layers, self.step, self.steps)


def bradley_terry(preferred, other):
    """- log P(preferred over other), the mean over rewards (B,)."""
    return -F.logsigmoid(preferred - other).mean()


def fit(scorer, preferred, other, lr, steps, batch, seed):
    """Train a reward model on pairs, both (n, T)."""
    descent = Descent(scorer.model, lr, steps, scorer.head.parameters())
    generator = torch.Generator().manual_seed(seed)
    for _ in (bar := tqdm(range(steps), "reward model", leave=steps > 1)):
        rows = torch.randint(len(preferred), (batch,), generator=generator)
        loss = bradley_terry(scorer.score(preferred[rows]), scorer.score(other[rows]))
        descent.descend(loss)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def pair_accuracy(scorer, preferred, other):
    """Share of pairs whose preferred text has the higher reward."""
    return (scorer.score(preferred) > scorer.score(other)).double().mean().item()
