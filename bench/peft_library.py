"""The part of bench.py that needs the PEFT library: a training step of our adapter and of theirs.

Both adapt the same encoder of encoders.py, with the same rank, layers, batch, optimizer and clipping;
they take turns, and the ratio is formed within a round. Theirs is put on our encoder by
`peft.get_peft_model`, so that only the adapters differ. Penalties (AdaLoRA's) and the reallocation
of ranks are left out of both.
"""

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiment import cli
import encoders
from errors import BadInput
from linearize import adapt

LAYERS = ["q", "k", "v", "out", "fc1", "fc2"]
SMALL = dict(width=384, depth=12, heads=6, hidden=1536)              # ViT-S, 21 million parameters


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

    def seconds(self, steps):
        """Of `steps` optimizer steps."""
        began = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.images)[:, :10], self.labels).backward()
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
        return (time.perf_counter() - began) / steps


def compare(small, batch, rounds, steps):
    """Print ours / theirs for every adapter that both have."""
    torch.manual_seed(0)
    encoder, pairs = encoders.ViT(**SMALL) if small else encoders.load("vit"), {}
    found = configurations()
    import peft
    for name, configuration in tqdm(found.items(), desc="building"):
        ours, _ = adapt(copy.deepcopy(encoder), name, generator=torch.Generator().manual_seed(0))
        theirs = peft.get_peft_model(copy.deepcopy(encoder), configuration).train()
        pairs[name] = Step(ours, batch), Step(theirs, batch)
        if len({sum(p.numel() for p in step.params) for step in pairs[name]}) > 1:
            raise BadInput(f"{name}: ours and theirs do not train the same number of parameters")
        for step in pairs[name]:
            step.seconds(2)                                                        # warm up
    seconds = {name: ([], []) for name in pairs}
    for turn in tqdm(range(rounds), desc="rounds"):
        for name, pair in pairs.items():
            for i in (0, 1) if turn % 2 else (1, 0):
                seconds[name][i].append(pair[i].seconds(steps))
    rows = []
    for name, (ours, theirs) in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs)], n=4)
        rows.append([name, f"{sum(p.numel() for p in pairs[name][0].params):,}",
                     *(f"{1e3 * statistics.median(s):.0f}" for s in (ours, theirs)),
                     f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    print(f"{sum(p.numel() for p in encoder.parameters()):,} parameters, batch {batch}, {rounds} "
          f"rounds of {steps} steps, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, peft {peft.__version__}")
    print(cli.table(["adapter", "trainable", "ours, ms", "PEFT, ms", "ours / PEFT"], rows))
