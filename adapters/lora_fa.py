"""LoRA-FA: Memory-Efficient Low-Rank Adaptation (frozen A). arXiv:2308.03303

    W_eff = W0 + s B A,   A random and frozen, B trained,   s = alpha / rank

    project:   grad_B <- grad_B (A A^T)^-1 / s^2, so that s grad_B A is the full gradient of W
               projected on the row space of A

Shapes   W0 (out, in) frozen · A (r, in) buffer · B (out, r)        trainable r out
Why      the backward pass needs only x A^T (..., r) for grad_B and not x itself.
Note     this is also what the layer-wise reading of L-LoRA computes (see l_lora.py).
"""

import torch

from lora import LoRA, register


@register
class LoRAFA(LoRA):
    """LoRA with A frozen at its random start.

    rank     (8)      inner dimension r, 1 <= r <= min(in, out)
    alpha    (16)     the update is scaled by alpha / rank
    project  (False)  precondition the gradient of B by (A A^T)^-1 / s^2
    """

    lr = {"off": 1e-2, "layer": 1e-2, "model": 1e-2}

    def __init__(self, base, *, rank=8, alpha=16.0, project=False, generator=None):
        super().__init__(base, rank=rank, alpha=alpha, generator=generator)
        A, self.project = self.A.detach(), project
        del self.A
        self.register_buffer("A", A)

    def trainable_count(self):
        return self.B.numel()

    @classmethod
    def after_backward(cls, layers, step, total_steps):
        for layer in layers:
            if layer.project:
                A, grad = (t.to(torch.promote_types(t.dtype, torch.float32))   # solve: no bfloat16
                           for t in (layer.A, layer.B.grad))
                gram = layer.scale ** 2 * A @ A.T                                    # (r, r)
                layer.B.grad = torch.linalg.solve(gram, grad.T).T.to(layer.B)
