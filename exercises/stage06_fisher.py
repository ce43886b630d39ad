"""Stage 6: the diagonal of the Fisher information. Fisher merging, arXiv:2111.09832

    true        F = (1/n) sum_x sum_c p(c|x) (d log p(c|x) / d theta)^2    labels: the model's own
    empirical   F = (1/n) sum_i (d log p(y_i|x_i) / d theta)^2             labels: given
    p(.|x) = softmax(logits(theta, x)), the square is entry by entry, p(c|x) in front is a constant

    log-trace = log(sum of all entries of F), F being the diagonal: one number for a whole model

Shapes   params is a dict name -> tensor, F a dict with the same keys and shapes
         logits (params, x (B, ...)) -> (B, C) · x (n, ...) · y (n,) int64
Trap     the square comes before every mean: one gradient for each example, and for each class.
         The mean gradient over the model's own labels is zero.
Tools    torch.func.grad(g)(params) is the gradient of a scalar function g of a dict, as a dict;
         log_softmax(-1) of logits is log p. A loop over examples and classes will do.
"""

import torch


def true_fisher(logits, params, x):
    """F, a dict like params."""
    raise NotImplementedError("true_fisher: blank")


def empirical_fisher(logits, params, x, y):
    """F, a dict like params, for the labels y."""
    raise NotImplementedError("empirical_fisher: blank")


def log_trace(fisher):
    """The log-trace (natural logarithm) of a dict F: a tensor of shape ()."""
    raise NotImplementedError("log_trace: blank")
