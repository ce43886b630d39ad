"""What an optimizer step of every adapter costs, as a ratio to plain LoRA: time and memory.

Two ways to linearize stand beside ours: torch.func.jvp as in the definition, and jvp in all
parameters of a layer as in the L-LoRA paper's released code.
"""

import statistics
from functools import partial

import torch
import torch.nn.functional as F
from tqdm import tqdm

import encoders
import lora
from bench.turns import conditions, quartiles, turns
from experiment import tables
from linearize import LinearizedLayer, LinearizedModel, adapt, encoder_of, method, taylor

SETTLED = {"rosa": {"warmup": 1, "collect": 1}, "lora_dash": {"launch": 1}}   # past their warm-up
BY_JVP = ", jvp"                         # a linearization by torch.func.jvp, for comparison
RELEASED = ", jvp in all"                # layers as in the paper's released code


class InAll(LinearizedLayer):
    """LinearizedLayer in every parameter of the layer, W0 and b0 too, whose tangents are zeros."""

    def forward(self, x):
        now = dict(self.inner.named_parameters())
        p0 = {k: self.p0.get(k, p.detach()) for k, p in now.items()}
        return taylor(method(self.inner, "forward", x), p0, now)


class Step:
    """A model, its optimizer and a fixed batch; `layers` are adapters with penalties and hooks."""

    def __init__(self, model, batch, layers=()):
        self.model, self.layers, self.steps = model, layers, 0
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.hooks = type(layers[0]) if layers else lora.Adapter
        groups = [g for layer in layers for g in layer.param_groups(1e-4, 0.0)]
        self.optimizer = torch.optim.AdamW(groups or self.params, 1e-4)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(batch, 1, 28, 28, generator=generator)
        self.labels = torch.randint(0, 10, (batch,), generator=generator)

    def count(self):
        """Trainable parameters."""
        return sum(p.numel() for p in self.params)

    def loss(self):
        """Cross entropy on the first ten features, plus the penalties."""
        penalty = sum(layer.regularizer() for layer in self.layers)
        return F.cross_entropy(self.model(self.images)[:, :10], self.labels) + penalty

    def train(self, steps=1):
        """Optimizer steps, as train.py takes them."""
        for _ in range(steps):
            self.steps += 1
            self.optimizer.zero_grad()
            self.loss().backward()
            self.hooks.after_backward(self.layers, self.steps, 10_000)
            torch.nn.utils.clip_grad_norm_(self.params, 1.0)
            self.optimizer.step()
            self.hooks.after_step(self.layers, self.steps, 10_000)


class Contender(Step):
    """One adapter on an encoder, the built-in one if none is given."""

    def __init__(self, adapter, reading, batch, encoder=None, **hp):
        encoder = (encoder or encoders.load("vit")).requires_grad_(False)
        self.frozen = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        generator = torch.Generator().manual_seed(0)
        model, layers = adapt(encoder, adapter, reading.partition(",")[0], **hp,
                              generator=generator, **SETTLED.get(adapter, {}))
        inner = encoder_of(model)
        if reading == "model" + BY_JVP:
            model = LinearizedModel(inner)
        if by_layer := {"off" + BY_JVP: LinearizedLayer, "off" + RELEASED: InAll}.get(reading):
            for name in layers:
                inner.set_submodule(name, by_layer(inner.get_submodule(name)))
        super().__init__(model, batch, list(lora.adapters(inner).values()))

    def kept(self):
        """Bytes saved for the backward pass of one batch, without the frozen weights."""
        return kept(self.loss, self.frozen)


def kept(loss, frozen):
    """Bytes that loss() saves for its backward pass, without storages at the addresses `frozen`."""
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = loss()
    del held
    return sum(size for pointer, size in saved.items() if pointer not in frozen)


def compare(variants, batch, rounds, steps):
    """Print the table of variants (adapter, reading); their ratios to LoRA as a list of dicts."""
    contenders = {v: Contender(*v, batch) for v in tqdm(variants, desc="building")}
    for contender in contenders.values():
        contender.train(2)                                           # settle masks and directions
    seconds = turns({v: partial(c.train, steps) for v, c in contenders.items()}, rounds)
    lines, ratios, base = [], [], contenders["lora", "off"].kept()
    for variant, contender in contenders.items():
        (adapter, reading), kept = variant, contender.kept()
        middle, text = quartiles(seconds, variant, ("lora", "off"))
        lines.append([adapter, reading.replace("off,", "layer,"), f"{contender.count():,}",
                      f"{1e3 * statistics.median(seconds[variant]) / steps:.0f}", text,
                      f"{kept / 2 ** 20:.1f}", f"{kept / base:.2f}"])
        ratios.append({"adapter": adapter, "linearize": reading, "time": middle,
                       "kept": kept / base})
    print(f"batch {batch}, {steps} steps in each of {conditions(rounds)}")
    print(tables.table(["adapter", "linearize", "trainable", "ms/step", "time / lora", "MiB kept",
                        "kept / lora"], lines))
    return ratios
