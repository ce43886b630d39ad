"""Stage 9: an adapter and a merge rule of your own, in the registries of lora.py and merge.py

Adapter  a class under `lora.Adapter` and the decorator `@lora.register`; its key is the name of
         the file, stage09_own. The layer that it changes is self.base, with a frozen weight W0
         (out, in) and a bias or None. Your parameters are nn.Parameter attributes.
             delta_weight()     W_eff - W0 (out, in), zero at the start, differentiable
             trainable_count()  how many numbers you train, computed from the shapes
             forward(x)         need not be written: x (W0 + delta_weight())^T + b
         Ideas: one factor for every input; a bias-like rank-1 term; LoRA with a third factor.
Rule     a function under the decorator `@merge.rule()`, signature (base, taus, *, lam=1.0):
             theta = theta_0 + lam (what you make of the task vectors)
         Dicts name -> tensor as in stage 4. One task vector is returned as it is, zero task vectors
         give base, the order of the tasks does not matter, no argument is modified, and the
         rule is neither average nor task arithmetic. Ideas: the median, the entry of largest
         magnitude, the mean without the extremes.
Both     a docstring: its first line is what `train.py --list` and `eval.py --list` show. The files
         adapters/ and rules/ are searched by themselves: move your two there to use them.
"""

import torch
from torch import nn

import lora
import merge


class Mine(lora.Adapter):

    def __init__(self, base):
        super().__init__(base)
        raise NotImplementedError("adapter: blank")

    def delta_weight(self):
        raise NotImplementedError("delta_weight: blank")

    def trainable_count(self):
        raise NotImplementedError("trainable_count: blank")


def mine(base, taus, *, lam=1.0):
    raise NotImplementedError("rule: blank")
