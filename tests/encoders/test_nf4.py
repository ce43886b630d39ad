"""NF4: the code book, the round trip, and every adapter on a quantised base."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lora
from encoders.nf4 import QuantLinear, nearest_level, nf4_levels
from lora import ADAPTERS
from support import close, every_adapter, perturb, refuses, small, train_steps

PUBLISHED = [-1, -.6961928, -.5250730, -.3949174, -.2844413, -.1847734, -.0910500, 0, .0795803,
             .1609301, .2461123, .3379151, .4407097, .5626169, .7229566, 1]


def linear(in_features, out_features, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias).double()


def test_code_book():
    levels = nf4_levels()
    close(levels, torch.tensor(PUBLISHED).double(), atol=1e-6, rtol=0)
    assert (levels.diff() > 0).all() and levels[7] == 0


def test_nearest_level_is_nearest():
    levels, x = nf4_levels(), torch.linspace(-1, 1, 1001).double()
    brute = (x[:, None] - levels).abs().min(1).values
    close((x - levels[nearest_level(x, levels).long()]).abs(), brute)


@pytest.mark.parametrize("shape", [(64, 32), (50, 7), (3, 2)], ids=str)
def test_round_trip(shape):
    """Error at most half the widest gap (.152) of the block's largest entry, plus what int8 costs
    it; codes and signs survive packing; sizes that are no multiple of 64 too."""
    base = linear(*shape)
    quant = QuantLinear(base)
    W, W_hat = base.weight.detach(), quant.weight
    assert W_hat.shape == W.shape and not any(p.requires_grad for n, p in quant.named_parameters()
                                              if n != "bias")
    blocks = F.pad(W.flatten(), (0, -W.numel() % 64)).view(-1, 64)
    largest = blocks.abs().amax(1)
    slack = (quant.block_scales() - largest).abs()
    bound = (0.1520 * largest + 2 * slack).repeat_interleave(64)[:W.numel()].view_as(W)
    assert ((W - W_hat).abs() <= bound).all()
    again = QuantLinear(base, W_hat).weight
    close(again, W_hat, atol=1e-2 * largest.max().item(), rtol=0)


def test_zero_block_and_exact_values():
    """A zero block stays zero; levels times a block's largest entry come back exactly, since the
    three scales 0, 1/2, 1 lie on the int8 grid around their mean."""
    base = nn.Linear(64, 3, bias=False).double()
    levels = nf4_levels().repeat(4)
    base.weight.data = torch.stack([torch.zeros(64).double(), levels, levels / 2])
    quant = QuantLinear(base)
    assert not quant.weight[0].any()
    close(quant.weight[1:], base.weight.detach()[1:], atol=1e-12, rtol=0)


def test_bits_per_weight():
    quant = QuantLinear(nn.Linear(1024, 1024))
    stored = sum(t.numel() * t.itemsize for t in (quant.codes, quant.largest, quant.scales))
    assert abs(8 * stored / 1024 ** 2 - 4.127) < 0.001


def test_quantising_twice_is_refused():
    refuses("quantised already", QuantLinear, QuantLinear(linear(8, 4)))


def quantised(name, **hp):
    """Adapter `name` on a quantised float64 layer of 9 inputs and 8 outputs."""
    model = nn.Sequential(linear(9, 8))
    generator = torch.Generator().manual_seed(5)
    lora.inject(model, name, "all", generator=generator, quantizer=QuantLinear, **small(name) | hp)
    return model[0]


@every_adapter
def test_every_adapter_runs_on_a_quantised_base(name):
    """Unchanged against the quantised base at the start (residual methods: see below); after
    training the base has the same bits, and forward is the dense edit of base.weight."""
    layer = quantised(name)
    x = torch.randn(2, 9, dtype=torch.float64)
    if name not in ("pissa", "milora", "olora"):
        reference = F.linear(x, QuantLinear(linear(9, 8)).weight, layer.base.bias)
        close(layer(x), reference, atol=1e-10, rtol=0)
    before = {k: v.clone() for k, v in layer.base.state_dict().items()}
    train_steps(layer, 2)
    perturb(layer)
    assert all(torch.equal(v, before[k]) for k, v in layer.base.state_dict().items())
    assert isinstance(layer.base, QuantLinear)
    if layer.weight_edit:
        change = layer.delta_bias()
        bias = layer.base.bias if change is None else layer.base.bias + change
        dense = F.linear(x, layer.base.weight + layer.delta_weight(), bias)
        close(layer(x), dense, atol=1e-10, rtol=0)


def decaying(n=64):
    """A weight with singular values 10 / i^2."""
    torch.manual_seed(0)
    Q1, Q2 = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for _ in range(2))
    base = nn.Linear(n, n).double()
    base.weight.data = Q1 @ torch.diag(10 / torch.arange(1, n + 1).double() ** 2) @ Q2
    return base


def error(name, **hp):
    """Nuclear norm of W0 minus the effective weight at the start."""
    base = decaying()
    W0 = base.weight.detach().clone()
    model = nn.Sequential(base)
    lora.inject(model, name, quantizer=QuantLinear, rank=8, **hp)
    W = model[0].base.weight + model[0].delta_weight()
    return torch.linalg.matrix_norm(W0 - W.detach(), "nuc")


def test_qpissa_has_a_smaller_error_than_qlora_and_refining_helps():
    """On a decaying spectrum the residual has little left to quantise."""
    qlora, qpissa, refined = error("lora"), error("pissa"), error("pissa", refine=5)
    assert qpissa < 0.5 * qlora and refined < qpissa


def test_residual_methods_quantise_the_residual():
    """W_eff = Q(W0 - s B0 A0) + s B A for PiSSA, MiLoRA and OLoRA alike."""
    for name in ("pissa", "milora", "olora"):
        layer, plain = quantised(name), ADAPTERS[name](linear(9, 8), rank=2, alpha=3.0)
        residual = plain.base.weight - plain.scale * plain.B0 @ plain.A0
        close(layer.base.weight, QuantLinear(linear(9, 8), residual).weight)
        close(layer.delta_weight(), layer.scale * layer.B @ layer.A)
