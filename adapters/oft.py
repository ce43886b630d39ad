"""OFT: Controlling Text-to-Image Diffusion by Orthogonal Finetuning. arXiv:2306.07280

    W_eff = W0 R^T,   y = (x R) W0^T + b0,   R block-diagonal over the inputs
    block R = (I - Q)(I + Q)^-1,   Q = -Q^T with the trained q above its diagonal      Cayley

Shapes   W0 (out, in) frozen · R of n = in / k blocks (k, k) · q (n, k (k - 1) / 2), starts at 0
         trainable in (k - 1) / 2;  full rank in general
Note     R is orthogonal, so W_eff W_eff^T = W0 W0^T: the norms of the rows (the neurons), their
         angles and the singular values stay. The norms of the columns do not.
         To first order delta = -2 W0 Q^T = 2 W0 Q: that is the layer's expansion, no rotation.
Differs  no COFT (a bound on Q). The released code trains a dense k x k matrix T, Q = (T - T^T) / 2.
Trap     rotations do not add: the mean of the weights of +90 and -90 degrees is zero, the mean of
         their q is W0. Merge in adapter space to keep what the method keeps.
         A Cayley map never reaches a rotation by 180 degrees.
"""

import torch
from torch import nn

from errors import BadInput
from lora import Adapter, register


@register
class OFT(Adapter):
    """The inputs turned, block by block.

    block   (32)   k, inputs that are turned together, 2 <= k; it divides in. 0 is all of them
    """

    lr = {"off": 1e-3, "layer": 3e-3, "model": 3e-3}

    def __init__(self, base, *, block=32):
        super().__init__(base)
        n = base.in_features
        self.block = block or n
        fit = [k for k in range(2, n + 1) if n % k == 0]
        if self.block not in fit:
            near = sorted(sorted(fit, key=lambda k: abs(k - block))[:3])
            raise BadInput(f"block {block} does not divide the {n} inputs of a layer into blocks "
                           f"of 2 or more: choose --set block={' or '.join(map(str, near))}")
        self.q = nn.Parameter(base.weight.new_zeros(n // self.block,
                                                    self.block * (self.block - 1) // 2))

    def rotation(self):
        """R (n, k, k), in float32 or better."""
        k = self.block
        q = self.q.to(torch.promote_types(self.q.dtype, torch.float32))
        i, j = torch.triu_indices(k, k, 1, device=q.device)
        upper = q.new_zeros(len(q), k * k).index_copy(1, i * k + j, q).view(-1, k, k)
        Q, identity = upper - upper.mT, torch.eye(k, dtype=q.dtype, device=q.device)
        return torch.linalg.solve(identity + Q, identity - Q).to(self.q.dtype)

    def delta_weight(self):
        W0 = self.base.weight
        turned = torch.einsum("onk,njk->onj", W0.unflatten(1, (-1, self.block)), self.rotation())
        return turned.flatten(1) - W0

    def forward(self, x):
        turned = torch.einsum("...nk,nkj->...nj", x.unflatten(-1, (-1, self.block)),
                              self.rotation())
        return self.base(turned.flatten(-2))

    def trainable_count(self):
        return self.base.in_features * (self.block - 1) // 2

    def rank_bound(self):
        """Of R - I per block; an odd one keeps a direction where it is."""
        return min(self.base.out_features, len(self.q) * (self.block - self.block % 2))
