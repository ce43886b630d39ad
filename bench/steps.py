"""Cost of an optimizer step of every adapter, as a ratio to plain LoRA measured in the same run.

    python bench.py                                    # every adapter as it runs by default
    python bench.py --adapters lora,l_lora,dora --rounds 40
    python bench.py --rules all                        # merge rules on 8 x 21 million parameters
    python bench.py --rules adamerging                 # one gradient of its coefficients
    python bench.py --growth                           # against rank, depth, batch, tasks
    python bench.py --peft tiny                        # training steps beside the PEFT library

Time     the adapters take turns: each round gives every one of them a few steps, and its ratio to
         LoRA is formed within the round, so that a slow moment of the machine hits all alike. The
         table shows the median over the rounds and the middle half.
Memory   bytes that autograd keeps from the forward to the backward pass, each storage once, without
         the frozen model: what a batch costs, counted exactly and not sampled.
Rules    seconds with all task vectors in memory, also relative to reading each number once; and the
         most memory held, in task vectors beside the base, when they come one by one.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from experiment import cli
import lora
import encoders
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


class Contender:
    """One adapter on an encoder, the built-in one if none is given, an optimizer, a fixed batch."""

    def __init__(self, adapter, reading, batch, encoder=None, **hp):
        encoder = (encoder or encoders.load("vit")).requires_grad_(False)
        self.frozen = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        generator = torch.Generator().manual_seed(0)
        self.model, layers = adapt(encoder, adapter, reading.partition(",")[0], **hp,
                                   generator=generator, **SETTLED.get(adapter, {}))
        inner = encoder_of(self.model)
        if reading == "model" + BY_JVP:
            self.model = LinearizedModel(inner)
        if by_layer := {"off" + BY_JVP: LinearizedLayer, "off" + RELEASED: InAll}.get(reading):
            for name in layers:
                inner.set_submodule(name, by_layer(inner.get_submodule(name)))
        self.layers = list(lora.adapters(inner).values())
        self.params = lora.trainable(inner).values()
        groups = [g for layer in self.layers for g in layer.param_groups(1e-4, 0.0)]
        self.optimizer, self.hooks, self.steps = torch.optim.AdamW(groups), type(self.layers[0]), 0
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(batch, 1, 28, 28, generator=generator)
        self.labels = torch.randint(0, 10, (batch,), generator=generator)

    def loss(self):
        """Cross entropy on the first ten features, plus the adapter's own penalty."""
        penalty = sum(layer.regularizer() for layer in self.layers)
        return F.cross_entropy(self.model(self.images)[:, :10], self.labels) + penalty

    def step(self):
        """One optimizer step, as train.py takes it."""
        self.steps += 1
        self.optimizer.zero_grad()
        self.loss().backward()
        self.hooks.after_backward(self.layers, self.steps, 10_000)
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        self.hooks.after_step(self.layers, self.steps, 10_000)

    def kept(self):
        """Bytes saved for the backward pass of one batch, without the frozen weights."""
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss()
        del loss
        return sum(size for pointer, size in seen.items() if pointer not in self.frozen)


def compare(kinds, batch, rounds, steps):
    """Print the table of adapters; [{"adapter", "linearize", "time", "kept"}], relative to LoRA."""
    contenders = {kind: Contender(*kind, batch) for kind in tqdm(kinds, desc="building")}
    seconds = {kind: [] for kind in kinds}
    for contender in contenders.values():
        contender.step(), contender.step()                           # warm up
    for _ in tqdm(range(rounds), desc="rounds"):
        for kind, contender in contenders.items():
            began = time.perf_counter()
            for _ in range(steps):
                contender.step()
            seconds[kind].append((time.perf_counter() - began) / steps)
    rows, found, base = [], [], contenders["lora", "off"].kept()
    for kind in kinds:
        ratios = [a / b for a, b in zip(seconds[kind], seconds["lora", "off"])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        kept = contenders[kind].kept()
        shown = (kind[0], kind[1].replace("off,", "layer,"))
        rows.append([*shown, f"{sum(p.numel() for p in contenders[kind].params):,}",
                     f"{1e3 * statistics.median(seconds[kind]):.0f}",
                     f"{middle:.2f} ({low:.2f} to {high:.2f})",
                     f"{kept / 2 ** 20:.1f}", f"{kept / base:.2f}"])
        found.append(dict(zip(("adapter", "linearize", "time", "kept"), (*kind, middle,
                                                                         kept / base))))
    print(f"batch {batch}, {rounds} rounds of {steps} steps, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}")
    print(cli.table(["adapter", "linearize", "trainable", "ms/step", "time / lora", "MiB kept",
                     "kept / lora"], rows))
    return found
