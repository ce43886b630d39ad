"""NF4 with double quantization, the frozen base of QLoRA. arXiv:2305.14314

    blocks of 64 weights:   a = max |w|,   code = index of the level nearest to w / a
    w_hat = level[code] a                    16 levels, the quantiles of a normal distribution
    double quantization:    a - mean(a) in int8, 256 of them to one float32 scale

Shapes   W (out, in) -> codes (out in / 2,) uint8, two a byte · a (blocks,) int8 · scales float32
         4 + 8/64 + 32/(64 256) = 4.127 bits a weight
Differs  int8 with a linear scale for the second quantization, where the paper has an 8-bit float.
Trap     re-quantising a merged weight loses the adapter, whose change is smaller than a step.
"""

from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput

BLOCK, GROUP = 64, 256
ZERO = 7                                             # the code of the level 0


def nf4_levels():
    """The 16 levels, ascending from -1 to 1 with an exact 0: 8 negative and 9 positive quantiles
    of the standard normal, evenly spaced in probability, zero shared, scaled to a maximum of 1."""
    top = (29 / 30 + 31 / 32) / 2
    quantile = NormalDist().inv_cdf
    spread = lambda n: [quantile(top + (0.5 - top) * i / (n - 1)) for i in range(n - 1)]
    levels = torch.tensor(sorted([-v for v in spread(8)] + [0.0] + spread(9)), dtype=torch.float64)
    return levels / levels.max()


def nearest_level(x, levels):
    """Index of the level nearest to every x, by the midpoints between levels."""
    return torch.bucketize(x, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)


class QuantLinear(nn.Linear):
    """A frozen nn.Linear whose weight is stored in NF4; `weight` is a property, dequantised anew.

    Adapters read their base through `base.weight` and `base.bias` and need not know.
    """

    def __init__(self, linear, weight=None):
        nn.Module.__init__(self)                     # not nn.Linear's: there is no weight to make
        if isinstance(linear, QuantLinear):
            raise BadInput("this layer is quantised already: quantise once")
        weight = (linear.weight if weight is None else weight).detach()
        self.out_features, self.in_features = weight.shape
        self.bias, levels = linear.bias, nf4_levels().to(weight)
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        centre = largest.mean()
        spread = F.pad(largest - centre, (0, -len(largest) % GROUP)).view(-1, GROUP)
        scales = spread.abs().amax(1) / 127                                     # (groups,)
        scales[scales == 0] = 1
        steps = (spread / scales[:, None]).round().clamp(-127, 127).flatten().to(torch.int8)
        for name, tensor in (("levels", levels), ("centre", centre), ("scales", scales),
                             ("largest", steps[:len(largest)])):
            self.register_buffer(name, tensor)
        kept = self.block_scales()
        safe = torch.where(kept > 0, kept, 1)[:, None]
        codes = nearest_level(blocks / safe, levels).flatten()
        codes[(largest == 0).repeat_interleave(BLOCK)] = ZERO
        self.register_buffer("codes", codes[0::2] * 16 + codes[1::2])           # two a byte

    def block_scales(self):
        """a, (blocks,), out of its int8 form; never negative."""
        scales = self.scales.repeat_interleave(GROUP)[:len(self.largest)]
        return (self.centre + self.largest.to(scales) * scales).clamp(min=0)

    @property
    def weight(self):
        """The dequantised weight (out, in), without gradient."""
        codes = torch.stack([self.codes // 16, self.codes % 16], 1).flatten().long()
        blocks = self.levels[codes].view(-1, BLOCK) * self.block_scales()[:, None]
        shape = self.out_features, self.in_features
        return blocks.flatten()[:shape[0] * shape[1]].view(shape)
