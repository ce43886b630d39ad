"""Classifiers on frozen features: one per task, fixed before fine-tuning, never merged.

    prompts      logits_k = 10 cos(f - mu, c_k),   c_k = mean over class k of normalised (g - nu)
    prototypes   the same with g = f
    probe        logits   = W (f - mu) / sigma + b, multinomial logistic regression

Shapes   f (n, D) features of `train`, mean mu (D,) · g (m, D) features of the clean drawings of
         tasks/prompts.py, mean nu (D,) · c (K, D)
Why      prompts are what CLIP's text embeddings are in the papers (2103.00020): no label of the
         task is used, so fine-tuning has much to learn and merging much to lose. mu centres the
         pictures, without which one class would get nearly all of them.

All are fitted to the *pretrained* encoder and stay as they are, for every method and after merging:
only the encoder is fine-tuned and merged.
"""

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput

EXAMPLES = 2000          # how many training inputs a head is fitted to


class Prototypes(nn.Module):
    """features (B, D) -> logits (B, K), 10 times the cosine to the class centres c (K, D)."""

    def __init__(self, width, classes):
        super().__init__()
        self.register_buffer("mu", torch.zeros(width))
        self.register_buffer("c", torch.zeros(classes, width))

    def fit(self, features, labels):
        """Closed form from features (n, D), labels (n,); a class without example stays at zero."""
        self.mu = features.mean(0)
        one_hot = F.one_hot(labels, len(self.c)).to(features.dtype)                       # (n, K)
        self.c = F.normalize(one_hot.T @ F.normalize(features - self.mu, dim=1), dim=1)
        return self

    def center(self, features):
        """Take the mean mu from features (n, D) of other inputs than the class centres."""
        self.mu = features.mean(0)
        return self

    def forward(self, features):
        return 10 * F.normalize(features - self.mu, dim=1) @ self.c.T


class Probe(nn.Module):
    """features (B, D) -> logits (B, K), a linear classifier on standardised features."""

    def __init__(self, width, classes):
        super().__init__()
        self.register_buffer("mu", torch.zeros(width))
        self.register_buffer("sigma", torch.ones(width))
        self.register_buffer("W", torch.zeros(classes, width))
        self.register_buffer("b", torch.zeros(classes))

    def fit(self, features, labels, ridge=1e-3, steps=100):
        """Minimise mean cross entropy + ridge ||W||^2 / 2 with L-BFGS; deterministic."""
        if len(features) < 2:
            raise BadInput("a linear probe needs at least 2 training examples: raise --limit")
        self.mu, self.sigma = features.mean(0), features.std(0).clamp(min=1e-6)
        x = (features - self.mu) / self.sigma
        W, b = (t.clone().requires_grad_() for t in (self.W, self.b))
        optimizer = torch.optim.LBFGS([W, b], max_iter=steps, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(F.linear(x, W, b), labels) + ridge / 2 * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.W, self.b = W.detach(), b.detach()
        return self

    def forward(self, features):
        return F.linear((features - self.mu) / self.sigma, self.W, self.b)


HEADS = {"prompts": Prototypes, "prototypes": Prototypes, "probe": Probe}


def place(inputs, like):
    """Inputs on the device of `like`, images in its dtype too; token ids stay integers."""
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)


@torch.no_grad()
def features(model, inputs, batch=250):
    """Features (n, D) of images (n, C, H, W) or ids (n, T), in chunks of `batch` images or 16,000
    tokens, on the model's device; float32 or better: heads are not fitted in bfloat16."""
    like = next(model.parameters())
    if not inputs.is_floating_point():
        batch = max(1, min(batch, 16_000 // inputs.shape[1]))
    out = torch.cat([model(place(chunk, like)) for chunk in inputs.split(batch)])
    return out.to(torch.promote_types(out.dtype, torch.float32))


def correct(head, features, labels):
    """Share of rows (n, D) whose largest logit is the label's."""
    return (head(features).argmax(1).cpu() == labels).double().mean().item()


def accuracy(model, head, inputs, labels):
    """Share of inputs whose largest logit is the label's."""
    return correct(head, features(model, inputs), labels)
