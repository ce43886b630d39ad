"""The step of every pretraining: AdamW, a one-cycle schedule, gradients clipped to norm 1."""

import torch


class OneCycle:
    """AdamW over modules for a number of steps; biases and norms are not decayed."""

    def __init__(self, modules, steps, lr, wd):
        self.params = [p for module in modules for p in module.parameters()]
        groups = [{"params": [p for p in self.params if p.ndim > 1], "weight_decay": wd},
                  {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0}]
        self.adam = torch.optim.AdamW(groups, lr=lr)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.adam, lr, total_steps=steps,
                                                            pct_start=0.1)

    def descend(self, loss):
        """One step down the gradient of the loss."""
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1)
        self.adam.step(), self.schedule.step()
