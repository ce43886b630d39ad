"""What several test files share: tiny encoders, adapters away from their start, run folders."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import adapters  # noqa: F401
import encoders
import lora
from encoders import safetensors
from encoders.bert import BERT
from encoders.heads import HEADS
from errors import BadInput
from exchange import peft_folder
from experiment import run_folder
from linearize import adapt, encoder_of, set_start, snapshot
from lora import ADAPTERS

TINY = {"image": 28, "patch": 7, "channels": 1, "width": 16, "depth": 2, "heads": 2, "hidden": 24,
        "mean": [0.5], "std": [0.5]}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
TINY_TEXT = {"vocab": len(WORDS), "positions": 64, "types": 2, "width": 16, "depth": 2, "heads": 2,
             "hidden": 24}
close = torch.testing.assert_close
QUICK = ["--steps", 6, "--limit", 40, "--batch", 16]
SPECIAL_WORDS = {"lora_dash": ["--set", "launch=2"],      # flags that fit six steps and width 16
                 "rosa": ["--set", "warmup=3", "--set", "collect=2"],
                 "oft": ["--set", "block=8"]}


def refuses(told, function, *arguments, **keywords):
    """The call raises BadInput with a line that matches `told`."""
    with pytest.raises(BadInput, match=told):
        function(*arguments, **keywords)


# ---- tiny encoders -------------------------------------------------------------------------------

def write_checkpoint(folder, seed=4):
    """A ViT of 2 blocks and width 16 at random weights, as a checkpoint folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    safetensors.write(encoders.ViT(**TINY).state_dict(), folder / "model.safetensors")
    run_folder.write_json({"model_type": "vit_encoder"} | TINY, folder / "config.json")
    return folder


def write_text_checkpoint(folder, seed=4):
    """A BERT of 2 blocks and width 16 at random weights that spells, as a checkpoint folder."""
    folder.mkdir(parents=True)
    safetensors.write(text_encoder(seed).state_dict(), folder / "model.safetensors")
    run_folder.write_json({"model_type": "bert_encoder"} | TINY_TEXT, folder / "config.json")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def text_encoder(seed=3):
    """A two-block BERT with random weights, and embeddings large enough to tell words apart."""
    torch.manual_seed(seed)
    model = BERT(**TINY_TEXT, sep=3)
    with torch.no_grad():
        for table in (model.word, model.position, model.segment):
            table.weight.mul_(20)
    return model


def perturb(module, size=0.3, seed=1):
    """Move every trained parameter away from its start; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return module


# ---- one layer with an adapter -------------------------------------------------------------------

SHAPES = [(7, 5, True), (4, 9, False)]         # (in, out, bias)
SMALL = {"rank": 2, "alpha": 3.0, "columns": 2}  # given to every adapter that has the key
SPECIAL = {"bat": {"rank": 1},                 # the only rank that divides these shapes
           "dora": {"detach": False},          # with the norm detached the gradient is not exact
           "dvora": {"detach": False},
           "adalora": {"target": 1},
           "spa": {"density": 0.2},
           "rosa": {"density": 0.2, "warmup": 1, "collect": 1},
           "lora_dash": {"directions": 2, "launch": 1},
           "oft": {"block": 0},                # all inputs: no other block divides 7, 4 and 9
           "bottleneck": {"bottleneck": 3}}
NEEDS_BIAS = {"bitfit"}
every_adapter = pytest.mark.parametrize("name", sorted(ADAPTERS))
every_weight_edit = pytest.mark.parametrize(
    "name", [name for name in sorted(ADAPTERS) if ADAPTERS[name].weight_edit])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def small(name):
    """Hyper-parameters that fit the small shapes of these tests."""
    keys = lora.hyperparameters(ADAPTERS[name])
    return {k: v for k, v in SMALL.items() if k in keys} | SPECIAL.get(name, {})


def make(name, shape, seed=0, **hp):
    """Adapter `name` on a random float64 layer of `shape`."""
    torch.manual_seed(seed)
    in_features, out_features, bias = shape
    if name in NEEDS_BIAS and not bias:
        pytest.skip(f"{name} needs a bias")
    model = nn.Sequential(nn.Linear(in_features, out_features, bias).double())
    lora.inject(model, name, "all", generator=torch.Generator().manual_seed(5),
                **small(name) | hp)
    return model[0]


def inputs(layer, seed=2):
    """x (2, 3, in) and a target (2, 3, out)."""
    generator = torch.Generator().manual_seed(seed)
    out_features, in_features = layer.base.weight.shape
    return (torch.randn(2, 3, in_features, generator=generator, dtype=torch.float64),
            torch.randn(2, 3, out_features, generator=generator, dtype=torch.float64))


def train_steps(layer, steps, wd=0.0):
    """A few AdamW steps on a random regression."""
    x, target = inputs(layer)
    optimizer = torch.optim.AdamW(layer.param_groups(0.05, wd))
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (F.mse_loss(layer(x), target) + layer.regularizer()).backward()
        type(layer).after_backward([layer], step, steps)
        optimizer.step()
        type(layer).after_step([layer], step, steps)


def moved(name, shape):
    """The adapter after two optimizer steps, so that its schedule has run, and a perturbation."""
    layer = make(name, shape)
    train_steps(layer, 2)
    return perturb(layer)


# ---- a linearized encoder ------------------------------------------------------------------------

def adapted(encoder, name, reading, away=0.2, x=torch.ones(1, 1, 28, 28).double()):
    """An encoder, linearized around a start that is `away` from the initialisation; x its input."""
    generator = torch.Generator().manual_seed(0)
    hp = {k: v for k, v in small(name).items() if k != "detach" or reading == "off"}
    model, _ = adapt(encoder, name, reading, generator=generator, **hp)
    layers = list(lora.adapters(encoder_of(model)).values())
    for step in (1, 2) if away else ():              # let schedules run: supports, directions
        model(x).square().sum().backward()
        type(layers[0]).after_backward(layers, step, 2)
        type(layers[0]).after_step(layers, step, 2)
        encoder_of(model).zero_grad()
    perturb(encoder_of(model), away)
    for layer in lora.adapters(encoder_of(model)).values():
        if isinstance(layer, ADAPTERS["l_lora"]):
            layer.A0.copy_(layer.A.detach()), layer.B0.copy_(layer.B.detach())
    set_start(model, snapshot(encoder_of(model)))
    return model


def displacement(model, seed, size=0.05):
    """A random task vector of the model."""
    generator = torch.Generator().manual_seed(seed)
    return {n: size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for n, p in lora.trainable(encoder_of(model)).items()}


def placed(model, start, *taus):
    """The model, its parameters at start + sum of taus."""
    with torch.no_grad():
        for n, p in lora.trainable(encoder_of(model)).items():
            p.copy_(start[n] + sum((tau[n] for tau in taus), torch.zeros_like(p)))
    return model


def sums_and_differences(model, x):
    """f(p0 + t1 + t2) - f(p0), and [f(p0 + t1) - f(p0)] + [f(p0 + t2) - f(p0)]."""
    start = {n: p.detach().clone() for n, p in lora.trainable(encoder_of(model)).items()}
    t1, t2 = displacement(model, 1), displacement(model, 2)
    with torch.no_grad():
        f0, f1, f2, f12 = (placed(model, start, *t)(x) for t in ((), (t1,), (t2,), (t1, t2)))
    return f12 - f0, (f1 - f0) + (f2 - f0)


# ---- run folders ---------------------------------------------------------------------------------

EXPORTS = [*((a, "off") for a in peft_folder.FORMS), ("lora", "layer"), ("l_lora", "layer")]
EXPORT_IDS = [f"{a}.{r}" for a, r in EXPORTS]


def make_run(out, checkpoint, adapter, reading="off", targets="all", seed=1, task="digits",
             size=None, move=0.3, **hp):
    """A run folder whose trained tensors all lie away from their start, without training."""
    hp = lora.hyperparameters(lora.ADAPTERS[adapter]) | hp
    setting = {"task": task, "adapter": adapter, "hp": hp, "linearize": reading,
               "quantize": None, "targets": targets, "init": None, "model": str(checkpoint),
               "size": size, "random_weights": False, "head": "prototypes", "data": None,
               "limit": 20, "seed": 0, "dtype": "float32"}
    encoder = encoders.load(checkpoint, size)
    generator = torch.Generator().manual_seed(0)
    model, layers = adapt(encoder, adapter, reading, targets, generator=generator, **hp)
    start, _ = run_folder.state(model)
    perturb(model, move, seed)
    head = HEADS["prototypes"](encoder.width, 10)
    torch.manual_seed(seed)
    head.mu = torch.randn(encoder.width)
    head.c = F.normalize(torch.randn(10, encoder.width), dim=1)
    run_folder.start_folder(run_folder.partial(out), setting)
    result = {"val": 0.5, "test": 0.25}
    run_folder.save_run(out, setting, model, layers, {task: head}, start, result, [(1, 0.1, 0.2)])
    return run_folder.load(out)


def small_run(adapter):
    """A rank that is no default, and an alpha where one is given, for a layer of 16."""
    if adapter in ("ia3", "oft"):
        return {"block": 4} if adapter == "oft" else {}
    return {"rank": 3} | ({"target": 2} if adapter == "adalora" else {}) | (
        {"alpha": 5.0} if adapter != "olora" else {})


# ---- dicts of tensors, and an encoder as one -----------------------------------------------------

def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def same(a, b, **tolerance):
    """Two dicts hold the same tensors."""
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], **tolerance)


def noise(like, size, seed=1):
    """A dict of random tensors with the keys and shapes of `like`."""
    g = generator(seed)
    return {k: size * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in like.items()}


def weights_of(encoder, seed=5):
    """Every weight of the encoder, LayerNorms moved off 1 and 0."""
    params = {k: v.detach().clone() for k, v in encoder.named_parameters()}
    return {k: v + d for (k, v), d in zip(params.items(), noise(params, 0.1, seed).values())}


def activations_of(encoder):
    """The callable (params, images) -> {weight name: inputs (rows, in)} of the linear layers."""
    def activations(params, x):
        seen, hooks = {}, []
        for name, layer in encoder.named_modules():
            if isinstance(layer, torch.nn.Linear):
                keep = lambda _, args, name=name: seen.update(
                    {f"{name}.weight": args[0].reshape(-1, args[0].shape[-1])})
                hooks.append(layer.register_forward_pre_hook(keep))
        functional_call(encoder, params, (x,))
        for hook in hooks:
            hook.remove()
        return seen
    return activations


def images(n=12, seed=2):
    return torch.rand(n, 1, 28, 28, generator=generator(seed), dtype=torch.float64)


UNIT_ORDER, HEAD_ORDER = torch.randperm(24, generator=generator(1)), torch.tensor([1, 0])


# ---- learned coefficients ------------------------------------------------------------------------

def t(*values):
    """A vector in float64."""
    return torch.tensor(values, dtype=torch.float64)


def small_network(tasks=3, seed=0):
    """A two-block network, its task vectors, and per task a head, inputs and labels."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    body = lambda: {"blocks.1.v": draw(4, 5), "blocks.0.q": draw(5, 3), "blocks.0.b": draw(5),
                    "norm": draw(4), "unused": draw(2)}
    heads = [draw(4, 3) for _ in range(tasks)]

    def function(head):
        def forward(params, x):
            h = torch.tanh(x @ params["blocks.0.q"].T + params["blocks.0.b"])
            return (torch.tanh(h @ params["blocks.1.v"].T) * params["norm"]) @ head
        return forward

    base, taus = body(), [body() for _ in range(tasks)]
    inputs = [draw(12, 3) for _ in range(tasks)]
    labels = [torch.randint(3, (12,), generator=g) for _ in range(tasks)]
    return base, taus, [function(h) for h in heads], inputs, list(zip(inputs, labels))


def one_weight(slope=1.0, offset=0.0):
    """base 0, tau 1, logits (slope w + offset, 0) and one example of label 0."""
    f = lambda p, x: torch.stack([slope * p["w"] + offset + 0 * x, 0 * x], -1)
    return {"w": t(0.0)}, {"w": t(1.0)}, f, (t(0.0), torch.tensor([0]))


def coefficients(merged, base, taus, index):
    """lam (T, G) with merged = base + sum_t lam_t^g tau_t, by least squares in every group."""
    columns = []
    for g in range(1 + max(index.values())):
        keys = [k for k in sorted(base) if index[k] == g]
        flat = lambda d, keys=keys: torch.cat([d[k].reshape(-1) for k in keys])
        moved = (flat(merged) - flat(base))[:, None]
        stack = torch.stack([flat(tau) for tau in taus], 1)
        columns.append(torch.linalg.lstsq(stack, moved, driver="gelsd").solution)
    return torch.cat(columns, 1)


def tensors(folder):
    """Everything trained in a run, flat."""
    run = run_folder.load(folder)
    heads = {f"{task}.{k}": v for task, head in run["heads"].items() for k, v in head.items()}
    return {f"{part}.{k}": v for part in ("start", "trained", "buffers")
            for k, v in run[part].items()} | heads


def identical(a, b):
    """The same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
