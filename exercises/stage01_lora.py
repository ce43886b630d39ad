"""Stage 1: LoRA. arXiv:2106.09685, eq. 3

    y = x W0^T + b + s (x A^T) B^T,   s = alpha / rank
    W_eff = W0 + s B A                one weight that computes the same: y = x W_eff^T + b

Shapes   x (..., in) -> y (..., out) · W0, W_eff (out, in) · b (out,) or None
         A (rank, in) · B (out, rank)
Given    alpha is a number; the rank is the number of rows of A
Start    A is uniform between -1/sqrt(in) and 1/sqrt(in), B is zero, so W_eff = W0 at first
Rule     modify no argument in place
"""

import torch


def start(W0, rank, generator):
    """The pair (A, B) at the start, in the dtype of W0.

    generator   a torch.Generator, handed to torch.rand: the same seed gives the same A
    """
    raise NotImplementedError("start: blank")


def forward(x, W0, b, A, B, alpha):
    """y (..., out). Any order is graded alike; x A^T first is the cheap one, it forms no B A."""
    raise NotImplementedError("forward: blank")


def merge(W0, A, B, alpha):
    """W_eff (out, in)."""
    raise NotImplementedError("merge: blank")


def unmerge(W_eff, A, B, alpha):
    """W0 (out, in), out of a merged weight and the adapter that was merged."""
    raise NotImplementedError("unmerge: blank")


def trained(in_features, out_features, rank):
    """How many numbers A and B hold together: an int."""
    raise NotImplementedError("trained: blank")
