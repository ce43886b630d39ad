"""Where merging happens: the task vectors of a set of runs, and how a merged dict becomes a model.

    weight    base = W0 (and b0) of the adapted layers, tau_t = dense delta_weight() of run t.
              Any ranks, alphas and adapters merge; task arithmetic on LoRA gives
              s lam sum_t B_t A_t, of rank up to T r.
    adapter   base = the adapter parameters before training, tau_t = trained_t - start. What the
              L-LoRA paper does. For LoRA the merged factors multiply out to
              s lam (sum_i B_i)(A0 + lam sum_j (A_j - A0)), with cross terms B_i A_j between
              tasks: not the same model.
              For a model linearized as a whole it is the only space, and exact: outputs are affine
              in the parameters, so adding task vectors adds outputs.

Both are a `Space`: the dicts, and what a merged dict does as a model.
"""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.func import functional_call

import lora
from encoders.heads import place
from errors import BadInput
from experiment import run_folder
from linearize import LinearizedModel, encoder_of


class Space(NamedTuple):
    """A group of runs as dicts of tensors, and what those dicts do as a model."""

    base: dict                       # name -> tensor
    taus: list                       # one dict per run, same keys
    apply: Callable                  # merged dict -> a new model with these tensors
    call: Callable                   # (dict, images or ids) -> features (B, D), for autograd
    activations: Callable | None     # (dict, images or ids) -> {weight name: its inputs (rows, in)}
    affine: bool                     # a model linearized as a whole: features affine in the dict


def default(group):
    """weight; adapter for what is no edit of the weights."""
    s = group[0]["setting"]
    edits = s["linearize"] != "model" and lora.find(s["adapter"]).weight_edit
    return "weight" if edits else "adapter"


def vectors(group, space, device="cpu"):
    """The Space of a list of runs, "weight" or "adapter"; BadInput where they do not fit."""
    check(group, space)
    encoder = run_folder.base_encoder(group[0], device)
    space = (weight_space if space == "weight" else adapter_space)(group, encoder)
    for run, tau in zip(group, space.taus):
        if broken := [k for k, v in tau.items() if not v.isfinite().all()]:
            raise BadInput(f"{run['folder']} has NaN or infinity in {', '.join(broken[:5])}: "
                           "leave it out or train it again")
        if not any(v.any() for v in tau.values()):
            raise BadInput(f"{run['folder']} has a task vector of zeros, it was not trained: "
                           "leave it out or train it again")
    return space


def origin(run):
    """Runs start from the same point if the bytes of the checkpoint and the input size agree."""
    s = run["setting"]
    return run["base"]["sha256"], s["size"], s["model"] if s["random_weights"] else None


def check_origin(group):
    """Raise BadInput unless the runs start from the same point."""
    for run in group[1:]:
        if origin(run) != origin(group[0]):
            raise BadInput(f"{group[0]['folder']} and {run['folder']} start from different base "
                           "checkpoints or input sizes: task vectors only add up around the same "
                           "point")


def check(group, space):
    """Raise BadInput unless the runs can be merged with each other in `space`."""
    check_origin(group)
    first = group[0]
    for run in group[1:]:
        pair = f"{first['folder']} and {run['folder']}"
        if default([run]) != default([first]):
            methods = (run_folder.method(r["setting"]) for r in (first, run))
            raise BadInput(f"{pair}: one is an edit of the weights and one is not, "
                           f"{' and '.join(methods)}: merge runs of one kind")
        if space == "weight":                       # a layer that a run leaves alone has tau = 0
            continue
        dense = default([first]) == "weight"        # only then is --space weight a way out
        if run["layers"] != first["layers"]:
            differ = sorted(set(run["layers"]) ^ set(first["layers"]))
            raise BadInput(f"{pair} adapt different layers ({', '.join(differ[:5])}): train both "
                           "with the same --targets" + ", or merge with --space weight" * dense)
        keys = ("adapter", "linearize", "quantize", "hp")
        if any(run["setting"][k] != first["setting"][k] for k in keys):
            raise BadInput(f"{pair} have different adapters or settings: --space adapter needs the "
                           "same adapter, rank and alpha" + "; --space weight merges any" * dense)
        theirs = run["start"] | run["buffers"]
        memory = lora.find(first["setting"]["adapter"]).memory
        for k, v in (first["start"] | first["buffers"]).items():
            if k.rpartition(".")[2] not in memory and not torch.equal(v, theirs[k]):
                raise BadInput(f"{pair} have different {k}: train with the same --seed and --dtype"
                               + ", or merge with --space weight if training chose it" * dense)
    if space == "weight" and default(group) == "adapter":
        raise lora.NotMergeable(f"{run_folder.method(first['setting'])} is not an edit of the "
                                "weights: merge it with --space adapter")


def weight_space(group, encoder):
    """Dense deltas of every adapted layer; a bias only some runs train is zero in the others.

    Quantisation changes W0 before training. Where it does so alike in all runs, its error belongs
    to the base, and not to every task vector.
    """
    taus, errors = [], []
    for run in group:
        model = run_folder.rebuild(run, copy.deepcopy(encoder))
        tau, error = lora.deltas(model), {}
        if run["setting"]["quantize"]:
            run_folder.set_tensors(model, run["start"], run["buffers"], run["folder"])
            start = lora.deltas(model)
            tau = {k: v - start[k] for k, v in tau.items()}
            for k, layer in ((f"{name}.weight", m) for name, m in lora.adapters(model).items()):
                error[k] = layer.base.weight + start[k] - encoder.get_parameter(k).detach()
        taus.append(tau), errors.append(error)
    names = sorted(set().union(*taus))
    base = {k: encoder.get_parameter(k).detach().clone() for k in names}
    taus = [{k: tau.get(k, torch.zeros_like(base[k])) for k in names} for tau in taus]
    if all(same(error, errors[0]) for error in errors):
        base |= {k: base[k] + v for k, v in errors[0].items()}
    else:
        taus = [tau | {k: tau[k] + v for k, v in error.items()} for tau, error in zip(taus, errors)]

    def call(params, inputs):
        return functional_call(encoder, params, (place(inputs, base[names[0]]),))

    layers = [k for k in names if k.endswith(".weight")]
    return Space(base, taus, partial(with_weights, encoder), call,
                 partial(layer_inputs, encoder, layers), affine=False)


def same(one, other):
    """Whether two dicts have the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def with_weights(encoder, params):
    """A copy of the encoder that has the tensors of `params` {name: tensor}."""
    model = copy.deepcopy(encoder)
    for k, v in params.items():
        model.get_parameter(k).data.copy_(v)
    return model


@torch.no_grad()
def layer_inputs(encoder, names, params, inputs):
    """{weight name: the inputs (rows, in) of its layer} with the weights of `params`; of the real
    tokens: padding is no row."""
    recorded = {}
    inputs = place(inputs, next(iter(params.values())))
    real = encoder.tokens(inputs)
    with contextlib.ExitStack() as hooks:
        for k in names:
            keep = lambda module, given, k=k: recorded.update({k: given[0][real]})
            module = encoder.get_submodule(k.removesuffix(".weight"))
            hooks.enter_context(module.register_forward_pre_hook(keep))
        functional_call(encoder, params, (inputs,))
    return recorded


def adapter_space(group, encoder):
    """The adapters' own parameters, merged around their common start."""
    model = run_folder.rebuild(group[0], encoder)
    like = next(iter(lora.trainable(encoder_of(model)).values()))
    base = {k: v.to(like.dtype) for k, v in group[0]["start"].items()}
    taus = [{k: run["trained"][k].to(like.dtype) - base[k] for k in base} for run in group]
    affine = isinstance(model, LinearizedModel)
    features = model.at if affine else lambda params, x: functional_call(model, params, (x,))

    def apply(merged):
        changed = copy.deepcopy(model)
        run_folder.set_tensors(changed, merged, group[0]["buffers"], "merged adapter")
        return changed

    def call(params, inputs):
        return features({k: v.to(like.device) for k, v in params.items()}, place(inputs, like))

    return Space(base, taus, apply, call, None, affine)
