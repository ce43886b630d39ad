"""What the graders share: `check` compares, and names the mistake whose value it finds."""

import copy
import inspect
import re
from pathlib import Path

import torch

GENERAL = "right shape, wrong values"           # a hint that names no mistake


def draw(*shape, seed=0):
    """Normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def t(*values):
    """A vector in float64."""
    return torch.tensor(values, dtype=torch.float64)


def mapped(function, *dicts):
    """{k: function(the entries k)}."""
    return {k: function(*(d[k] for d in dicts)) for k in dicts[0]}


def same(a, b):
    """Equal up to rounding: tensors, or dicts of tensors with the same keys."""
    if isinstance(b, dict):
        return all(same(a[k], b[k]) for k in b)
    return torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def check(got, want, what, causes=(), first=lambda: None):
    """AssertionError unless `got` is `want`: tensors or dicts of tensors, in form and in values.

    causes   {hint: the value that this mistake gives}
    first    runs the tests of what `got` builds on: if one fails, its hint is the cause
    """
    kind = dict if isinstance(want, dict) else torch.Tensor
    assert isinstance(got, kind), f"{what} is a {type(got).__name__}, not a {kind.__name__}"
    if kind is dict:
        assert got.keys() == want.keys(), f"{what} has the keys {list(got)}, not {list(want)}"
    for a, b in [(got[k], want[k]) for k in want] if kind is dict else [(got, want)]:
        assert a.shape == b.shape, f"{what} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"{what} is {a.dtype}: keep the dtype of what is given"
        assert not a.isnan().any(), f"{what} has NaN: is it 0 / 0, or 0 log 0?"
    if not same(got, want):
        first()
        for cause, value in dict(causes).items():
            assert not same(got, value), f"{what}: {cause}"
        raise AssertionError(f"{what}: {GENERAL}: compare with the equation of {about(what)}")


def untouched(function, *inputs, **keywords):
    """function(*inputs), which has no graph and changes no input: each prints as before."""
    copies = copy.deepcopy(inputs)
    got = function(*copies, **keywords)
    for name, after, before in zip(inspect.signature(function).parameters, copies, inputs):
        assert repr(after) == repr(before), f"{function.__name__} changes {name}: make new tensors"
    assert "grad" not in repr(got), f"{function.__name__}: it has a graph, detach it"
    return got


def hint(error):
    """What a grader or a blank says, in a line; of any other error its place in the stage, too."""
    says = str(error.value).partition("\n")[0]
    says += " (forgot return?)" if "NoneType" in says else ""
    places = [(Path(entry.path).name, entry.lineno + 1) for entry in error.traceback]
    lines = [f" ({name}, line {line})" for name, line in places if name.startswith("stage")]
    told = says and error.errisinstance((AssertionError, NotImplementedError))
    return says if told else f"{error.typename}: {says}{lines[-1] if lines else ''}"


def about(says):
    """The function that a hint is about is its first word."""
    return re.match(r"\w*", says)[0]


def lines(stage, points):
    """Where points failed and why. A general hint gives way to another about its function."""
    failed, names = [p for p in points if p.failed], {}
    precise = {about(p.hint): p.hint for p in failed[::-1] if GENERAL not in p.hint}
    for p in failed:
        says = precise.get(about(p.hint), p.hint) if GENERAL in p.hint else p.hint
        names.setdefault(says, []).append(p.nodeid.partition("::test_")[2])
    return [f"stage {stage}, {', '.join(at)}: " + (
        re.sub(f"^{at[0]}[:,] ", "", says) if len(at) == 1 else says) for says, at in names.items()]
