"""DVoRA: DoRA's magnitude over VeRA's direction. arXiv:2402.09353

    W_eff = diag(m / n) V,   V = W0 + diag(b) B diag(d) A,   n_i = ||V_i||

Shapes   W0 (out, in) frozen · A (r, IN), B (OUT, r) shared as in vera.py · m, n, b (out,)
         d (r,) · trainable 2 out + r;  m starts at the row norms of W0 and b at 0, so W_eff = W0
Note     n is a constant to the gradient, as in dora.py. VeRA's rank is so large that its forward
         pass is the dense edit, and the norm can be read off V.
"""

from torch import nn

from adapters.dora import row_square
from adapters.vera import VeRA
from lora import Adapter, register


@register
class DVoRA(VeRA):
    """Magnitude and direction trained apart, the direction by VeRA.

    rank    (256)   rows of the shared A
    detach  (True)  no gradient through the norm n; a linearization expands n, too
    """

    lr = {"off": 3e-2, "layer": 1e-2, "model": 1e-2}
    rank_bound = Adapter.rank_bound

    def __init__(self, base, *, rank=256, detach=True, generator=None):
        super().__init__(base, rank=rank, generator=generator)
        self.detach = detach
        self.m = nn.Parameter(row_square(base, "dvora").sqrt())              # (out,)

    def delta_weight(self):
        V = self.base.weight + super().delta_weight()
        n = V.norm(dim=1)                                                    # (out,)
        return (self.m / (n.detach() if self.detach else n))[:, None] * V - self.base.weight

    def trainable_count(self):
        return super().trainable_count() + len(self.m)

    def param_groups(self, lr, wd):
        return [{"params": [self.b, self.d], "lr": lr, "weight_decay": wd},
                {"params": [self.m], "lr": lr, "weight_decay": 0.0}]
