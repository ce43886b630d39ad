"""A training step of our adapter and of the PEFT library's.

Both adapt the same encoder, with the same rank, layers, batch, optimizer and clipping;
they take turns, and the ratio is formed within a round. Theirs is put on our encoder by
`peft.get_peft_model`, so that only the adapters differ. Penalties (AdaLoRA's) and the reallocation
of ranks are left out of both.
"""

import copy
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

import encoders
from bench.turns import quartiles, turns
from errors import BadInput
from experiment import cli
from linearize import adapt

LAYERS = ["q", "k", "v", "out", "fc1", "fc2"]
SMALL = dict(width=384, depth=12, heads=6, hidden=1536)              # ViT-S, 21 million parameters
WHOSE = ("ours", "theirs")


def configurations():
    """{our adapter: PEFT's configuration with the settings of our defaults}."""
    try:
        import peft
    except ImportError:
        raise BadInput("--peft compares with the PEFT library, which is not installed: "
                       "pip install -r requirements-exchange.txt") from None
    lora = lambda **more: peft.LoraConfig(r=8, lora_alpha=16, target_modules=LAYERS, **more)
    return {"lora": lora(), "dora": lora(use_dora=True),
            "pissa": peft.LoraConfig(r=8, lora_alpha=8, target_modules=LAYERS,
                                     init_lora_weights="pissa"),
            "adalora": peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=16, tinit=10, tfinal=10,
                                          total_step=1000, target_modules=LAYERS),
            "vera": peft.VeraConfig(r=256, target_modules=LAYERS),
            "bone": peft.MissConfig(r=8, target_modules=LAYERS)}


class Step:
    """A model, its optimizer and a fixed batch."""

    def __init__(self, model, batch):
        self.model, self.params = model, [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.params, 1e-4)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(batch, 1, 28, 28, generator=generator)
        self.labels = torch.randint(0, 10, (batch,), generator=generator)

    def count(self):
        """Trainable parameters."""
        return sum(p.numel() for p in self.params)

    def train(self, steps):
        """Optimizer steps on the batch."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.images)[:, :10], self.labels).backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()


def compare(small, batch, rounds, steps):
    """Print ours / theirs for every adapter that both have."""
    torch.manual_seed(0)
    encoder, contenders = encoders.ViT(**SMALL) if small else encoders.load("vit"), {}
    theirs_by_name = configurations()
    import peft
    for name, configuration in tqdm(theirs_by_name.items(), desc="building"):
        ours, _ = adapt(copy.deepcopy(encoder), name, generator=torch.Generator().manual_seed(0))
        theirs = peft.get_peft_model(copy.deepcopy(encoder), configuration).train()
        for whose, model in zip(WHOSE, (ours, theirs)):
            contenders[name, whose] = Step(model, batch)
        if contenders[name, "ours"].count() != contenders[name, "theirs"].count():
            raise BadInput(f"{name}: ours and theirs do not train the same number of parameters")
    for contender in contenders.values():
        contender.train(2)                                                         # warm up
    seconds = turns({key: partial(c.train, steps) for key, c in contenders.items()}, rounds)
    lines = []
    for name in theirs_by_name:
        times = [f"{1e3 * statistics.median(seconds[name, whose]) / steps:.0f}" for whose in WHOSE]
        lines.append([name, f"{contenders[name, 'ours'].count():,}", *times,
                      quartiles(seconds, *((name, whose) for whose in WHOSE))[1]])
    print(f"{sum(p.numel() for p in encoder.parameters()):,} parameters, batch {batch}, {rounds} "
          f"rounds of {steps} steps, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, peft {peft.__version__}")
    print(cli.table(["adapter", "trainable", "ours, ms", "PEFT, ms", "ours / PEFT"], lines))
