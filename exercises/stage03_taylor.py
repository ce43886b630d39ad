"""Stage 3: the first-order Taylor expansion. L-LoRA, arXiv:2310.04742 · arXiv:2305.12827

    f_lin(p) = f(p0) + J f(p0) (p - p0)          J f(p0), the Jacobian at p0, is never formed:
                                                 value, tangent = torch.func.jvp(f, (p0,), (dp,))
                                                 are f(p0) and J f(p0) dp

Two readings of "the linearized network", for layers l = 1 .. L:

    whole    f is the whole network, q -> layer_L(q, ... layer_1(q, x))
    layers   every layer is expanded by itself, at the input that the expanded layer before gives:
             h_0 = x,   h_l = expansion of q -> layer_l(q, h_(l-1)),   y = h_L

Task vectors t1, t2 superpose where the gap is zero:

    gap = [f(p0 + t1 + t2) - f(p0)] - [f(p0 + t1) - f(p0)] - [f(p0 + t2) - f(p0)]

It is zero for the whole, and not for the layers: the last test shows both with your functions.

Shapes   p, p0, t1, t2, dp are dicts name -> tensor with the same keys and shapes
         f (dict) -> tensor · layers is a list of functions (dict, h (B, in)) -> (B, out), each of
         which gets the whole dict and takes its own entries · x (B, in)
"""

import torch


def taylor(f, p0, p):
    """f_lin(p), a tensor like f(p0)."""
    raise NotImplementedError("taylor: blank")


def whole(layers, p0, p, x):
    """y (B, out) of the whole network, expanded around p0, at p."""
    raise NotImplementedError("whole: blank")


def layer_by_layer(layers, p0, p, x):
    """y (B, out) of the network whose layers are expanded one by one, around p0, at p."""
    raise NotImplementedError("layer_by_layer: blank")


def gap(f, p0, t1, t2):
    """The gap, a tensor like f(p0). f is any function of a dict, expanded or not."""
    raise NotImplementedError("gap: blank")
