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
from tqdm import tqdm

import encoders
from bench.steps import Step
from bench.turns import conditions, quartiles, turns
from errors import BadInput
from experiment import tables
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
    lora = partial(peft.LoraConfig, r=8, target_modules=LAYERS)
    return {"lora": lora(lora_alpha=16), "dora": lora(lora_alpha=16, use_dora=True),
            "pissa": lora(lora_alpha=8, init_lora_weights="pissa"),
            "adalora": peft.AdaLoraConfig(init_r=12, target_r=8, lora_alpha=16, tinit=10, tfinal=10,
                                          total_step=1000, target_modules=LAYERS),
            "vera": peft.VeraConfig(r=256, target_modules=LAYERS),
            "bone": peft.MissConfig(r=8, target_modules=LAYERS)}


def compare(small, batch, rounds, steps):
    """Print ours / theirs for every adapter that both have."""
    torch.manual_seed(0)
    encoder, contenders = encoders.ViT(**SMALL) if small else encoders.load("vit"), {}
    theirs_by_name, lines = configurations(), []
    import peft
    for name, configuration in tqdm(theirs_by_name.items(), desc="building"):
        ours, _ = adapt(copy.deepcopy(encoder), name, generator=torch.Generator().manual_seed(0))
        theirs = peft.get_peft_model(copy.deepcopy(encoder), configuration).train()
        contenders |= {(name, "ours"): Step(ours, batch), (name, "theirs"): Step(theirs, batch)}
        if contenders[name, "ours"].count() != contenders[name, "theirs"].count():
            raise BadInput(f"{name}: ours and theirs do not train the same number of parameters")
    seconds = turns({key: partial(c.train, steps) for key, c in contenders.items()}, rounds)
    for name in theirs_by_name:
        pair = (name, "ours"), (name, "theirs")
        times = [f"{1e3 * statistics.median(seconds[key]) / steps:.0f}" for key in pair]
        lines.append([name, f"{contenders[name, 'ours'].count():,}", *times,
                      quartiles(seconds, *pair)[1]])
    print(f"{sum(p.numel() for p in encoder.parameters()):,} parameters, batch {batch}, {steps} "
          f"steps in each of {conditions(rounds)}, peft {peft.__version__}")
    print(tables.table(["adapter", "trainable", "ours, ms", "PEFT, ms", "ours / PEFT"], lines))
