"""Forward-mode differentiation by hand, with dual numbers: what DualModel computes with.

    f(z + e dz) = f(z) + e J_f(z) dz,   e^2 = 0

A value z travels together with its tangent dz, the derivative along one direction. Every operation
has a rule that says what becomes of both; a network made of these operations then computes its
output and J dz in one forward pass, without forming J:

    linear map L      L z                                L dz
    sum, product      z + w,  z w,  z @ w                dz + dw,  dz w + z dw,  dz @ w + z @ dw
    softmax           s = softmax(z)                     s (dz - sum(s dz))
    LayerNorm         g n + b,  n = (z - mean) / std     g (dz - mean(dz) - n mean(n dz)) / std
    GELU              z Phi(z)                           (Phi(z) + z phi(z)) dz

Shapes   z and dz alike, any; sum, mean and std over the dimension that is normalised
Kernels  the Jacobians of softmax, of LayerNorm without g and of GELU are symmetric, J dz = J^T dz:
         the rules call PyTorch's backward kernels, each one pass over the data, to push forward.
Cost     no value depends on what is trained, so autograd records nothing of the values: the
         backward pass runs through the tangents alone and is that of an ordinary network.
Differs  torch.func.jvp does the same for every operation that PyTorch has, and stays the definition
         that the tests hold this file to; it records both halves and takes half as long again.
"""

import torch
import torch.nn.functional as F

from errors import BadInput

aten = torch.ops.aten
RULES = {}                                   # name of a function or method of PyTorch -> its rule


class Dual:
    """z and dz. PyTorch's functions, methods and operators take it where there is a rule."""

    def __init__(self, z, dz):
        self.z, self.dz, self.shape = z, dz, z.shape

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ not in RULES:
            raise no_rule(function.__name__)
        return RULES[function.__name__](*args, **(kwargs or {}))

    def __getattr__(self, name):
        raise AttributeError(name) if name.startswith("__") else no_rule(name)


def no_rule(name):
    """The error for an operation that is not in RULES."""
    return BadInput(f"{name} of a model that is linearized as a whole: dual.py has no rule for it, "
                    "add one there")


def rule(*names):
    """This is the rule for torch.name, Tensor.name and the operator of that name."""
    def add(f):
        for name in names:
            RULES[name] = f
            setattr(Dual, name, f)
        return f
    return add


def parts(x):
    """(z, dz) of a Dual; what has no tangent is constant, (x, None)."""
    return (x.z, x.dz) if isinstance(x, Dual) else (x, None)


def bilinear(f, a, b):
    """f linear in each argument: f(a, b) and f(da, b) + f(a, db)."""
    (a, da), (b, db) = parts(a), parts(b)
    if da is None or db is None:
        return Dual(f(a, b), f(a, db) if da is None else f(da, b))
    return Dual(f(a, b), f(da, b) + f(a, db))


def linear_map(name):
    """The rule for a method of a tensor that is linear in it: the same for value and tangent."""
    f = getattr(torch.Tensor, name)
    rule(name)(lambda x, *args: Dual(f(x.z, *args), f(x.dz, *args)))


for name in ("view", "reshape", "transpose", "sum", "__getitem__"):
    linear_map(name)


@rule("add", "__add__", "__radd__")
def add(a, b):
    (a, da), (b, db) = parts(a), parts(b)
    return Dual(a + b, db if da is None else da if db is None else da + db)


rule("mul", "__mul__", "__rmul__")(lambda a, b: bilinear(torch.mul, a, b))
rule("matmul", "__matmul__")(lambda a, b: bilinear(torch.matmul, a, b))
rule("neg", "__neg__")(lambda a: Dual(-a.z, -a.dz))
rule("sub", "__sub__")(lambda a, b: add(a, -b))
rule("rsub", "__rsub__")(lambda a, b: add(-a, b))
rule("gelu")(lambda x: Dual(F.gelu(x.z), aten.gelu_backward(x.dz, x.z)))


@rule("div", "__truediv__")
def div(a, constant):
    if isinstance(constant, Dual):
        raise no_rule("division by what depends on the parameters")
    return Dual(a.z / constant, a.dz / constant)


@rule("linear")
def linear(x, weight, bias=None):
    return Dual(F.linear(x.z, weight, bias), F.linear(x.dz, weight))


@rule("softmax")
def softmax(x, dim):
    s = x.z.softmax(dim)
    return Dual(s, aten._softmax_backward_data(x.dz, s, dim, s.dtype))


@rule("layer_norm")
def layer_norm(x, shape, weight, bias, eps):
    y, mean, rstd = torch.native_layer_norm(x.z, shape, weight, bias, eps)
    n = aten.native_layer_norm_backward(x.dz, x.z, shape, mean, rstd, None, None,
                                        (True, False, False))[0]
    return Dual(y, weight * n)


@rule("sigmoid")
def sigmoid(x):
    s = torch.sigmoid(x.z)
    return Dual(s, s * (1 - s) * x.dz)
