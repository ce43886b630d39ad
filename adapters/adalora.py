"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning. arXiv:2303.10512

    W_eff = W0 + s P diag(e) Q      s = alpha / rank
    loss += gamma mean over all P, Q of ||P^T P - I||^2, ||Q Q^T - I||^2
    I(w) = |w dL/dw|,   Ibar = b1 Ibar + (1 - b1) I
    Ubar = b2 Ubar + (1 - b2) |I - Ibar|,   s(w) = Ibar Ubar
    S_i = s(e_i) + mean_j s(P_ji) + mean_j s(Q_ij)                     triplet i of one layer
    every `every` steps keep the b(t) triplets of highest S over all layers, set e = 0 in the others

    b(t) = b0 up to ti;  bT + (b0 - bT) (1 - (t - ti) / (T - ti - tf))^3;  bT from T - tf

Shapes   W0 (out, in) frozen · P (out, r) · e (r,) · Q (r, in)         trainable r (in + out) + r
Note     a pruned triplet keeps P and Q and may come back; in the last tf steps the mask is fixed
         and applied after every step, or the optimizer's momentum would revive e.
Differs  the printed cubic (appendix A) subtracts ti + tf in the numerator and then neither starts
         at b0 nor ends at bT; this is the released code's. Scores use the weight and the gradient
         of the same step, as algorithm 1 has it.
"""

import torch
import torch.nn.functional as F
from torch import nn

from errors import BadInput
from lora import Adapter, check_rank, register


def budget(step, total, first, last, warmup, final):
    """b(t): number of triplets over all layers at optimizer step t = 1, 2, ..."""
    ti, tf = round(warmup * total), round(final * total)
    if step <= ti:
        return first
    if step >= total - tf:
        return last
    return int(last + (first - last) * (1 - (step - ti) / (total - ti - tf)) ** 3)


@register
class AdaLoRA(Adapter):
    """An SVD-shaped update whose rank is shared out over the layers while training.

    rank    (12)   triplets per layer at the start
    target  (8)    average triplets per layer at the end, target <= rank
    alpha   (16)   the update is scaled by alpha / rank
    gamma   (0.1)  weight of the orthogonality penalty, 0 or more
    beta    (0.85) b1 = b2, memory of sensitivity and uncertainty, 0 <= beta < 1
    warmup  (0.1)  share of the steps before pruning starts
    final   (0.3)  share of the steps after it has ended; warmup + final < 1
    every   (10)   steps between two allocations
    """

    memory = ("kept", *(f"{bar}_{p}" for p in "PQe" for bar in ("Ibar", "Ubar")))
    lr = {"off": 1e-2, "layer": 6e-3, "model": 6e-3}

    def __init__(self, base, *, rank=12, target=8, alpha=16.0, gamma=0.1, beta=0.85, warmup=0.1,
                 final=0.3, every=10, generator=None):
        super().__init__(base)
        check_rank(base, rank)
        if not 1 <= target <= rank:
            raise BadInput(f"adalora goes from rank {rank} to target {target}: choose --set target "
                           f"between 1 and {rank}")
        if every < 1:
            raise BadInput(f"adalora prunes every {every} steps: choose --set every of 1 or more")
        if gamma < 0 or not 0 <= beta < 1:
            raise BadInput(f"gamma {gamma:g} and beta {beta:g}: adalora needs gamma of 0 or more "
                           "and 0 <= beta < 1")
        self.scale, self.target, self.gamma, self.beta = alpha / rank, target, gamma, beta
        self.warmup, self.final, self.every, self.matrices = warmup, final, every, 2
        draw = lambda *shape: (0.02 * torch.randn(*shape, generator=generator)).to(base.weight)
        self.P = nn.Parameter(draw(base.out_features, rank))
        self.e = nn.Parameter(base.weight.new_zeros(rank))
        self.Q = nn.Parameter(draw(rank, base.in_features))
        for name, p in (("P", self.P), ("e", self.e), ("Q", self.Q)):
            self.register_buffer(f"Ibar_{name}", torch.zeros_like(p.data))
            self.register_buffer(f"Ubar_{name}", torch.zeros_like(p.data))
        self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))

    def delta_weight(self):
        return self.scale * (self.P * self.e) @ self.Q

    def forward(self, x):
        return self.base(x) + self.scale * F.linear(F.linear(x, self.Q) * self.e, self.P)

    def trainable_count(self):
        return self.P.numel() + self.e.numel() + self.Q.numel()

    def rank_bound(self):
        return len(self.e)

    def regularizer(self):
        eye = torch.eye(len(self.e), dtype=self.e.dtype, device=self.e.device)
        grams = self.P.T @ self.P, self.Q @ self.Q.T
        return self.gamma / self.matrices * sum((g - eye).square().sum() for g in grams)

    def update_scores(self):
        """Sensitivity and uncertainty of every trained number, from weight and gradient."""
        for name in "PeQ":
            w, b = getattr(self, name), self.beta
            Ibar, Ubar = getattr(self, f"Ibar_{name}"), getattr(self, f"Ubar_{name}")
            sensitivity = (w * w.grad).abs()
            Ibar.mul_(b).add_((1 - b) * sensitivity)
            Ubar.mul_(b).add_((1 - b) * (sensitivity - Ibar).abs())

    def scores(self):
        """S (r,) of the layer's triplets."""
        s = {name: getattr(self, f"Ibar_{name}") * getattr(self, f"Ubar_{name}") for name in "PeQ"}
        return s["e"] + s["P"].mean(0) + s["Q"].mean(1)

    @classmethod
    def share(cls, layers, generator):
        for layer in layers:
            layer.matrices = 2 * len(layers)

    @classmethod
    def before_training(cls, layers, total_steps):
        warmup, final = layers[0].warmup, layers[0].final
        outside = round(warmup * total_steps) + round(final * total_steps)
        if warmup < 0 or final < 0 or outside >= total_steps:
            raise BadInput(f"adalora: warmup {warmup} and final {final} leave none of the "
                           f"{total_steps} steps to prune in: lower --set warmup or final")

    @classmethod
    @torch.no_grad()
    def after_backward(cls, layers, step, total_steps):
        for layer in layers:
            layer.update_scores()

    @classmethod
    @torch.no_grad()
    def after_step(cls, layers, step, total_steps):
        """Allocate the budget over all layers; in the final phase hold the last mask."""
        one = layers[0]
        fixed_from = total_steps - round(one.final * total_steps)
        if step == fixed_from or (step < fixed_from and step % one.every == 0):
            keep = budget(step, total_steps, len(layers) * len(one.e), len(layers) * one.target,
                          one.warmup, one.final)
            scores = torch.cat([layer.scores() for layer in layers])
            kept = torch.zeros_like(scores, dtype=torch.bool)
            kept[scores.topk(keep).indices] = True
            for layer, mask in zip(layers, kept.split(len(one.e))):
                layer.kept.copy_(mask)
                layer.e.mul_(mask)
        elif step > fixed_from:
            for layer in layers:
                layer.e.mul_(layer.kept)
