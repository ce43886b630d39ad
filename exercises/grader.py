"""What the graders share: `check` compares, and names the mistake whose value it finds."""

from pathlib import Path

import torch


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


def check(got, want, what, causes=()):
    """AssertionError unless `got` is `want`: tensors or dicts of tensors, in form and in values.

    causes   {hint: the value that this mistake gives}
    """
    kind = dict if isinstance(want, dict) else torch.Tensor
    assert isinstance(got, kind), f"{what} is a {type(got).__name__}, not a {kind.__name__}"
    if kind is dict:
        assert got.keys() == want.keys(), f"{what} has the keys {list(got)}, not {list(want)}"
    pairs = [(got[k], want[k]) for k in want] if kind is dict else [(got, want)]
    for a, b in pairs:
        assert a.shape == b.shape, f"{what} has shape {tuple(a.shape)}, not {tuple(b.shape)}"
        assert a.dtype == b.dtype, f"{what} is {a.dtype}: keep the dtype of what is given"
    if not same(got, want):
        for cause, value in dict(causes).items():
            assert not same(got, value), f"{what}: {cause}"
        raise AssertionError(f"{what}: the form is right, the values are wrong, see its equation")


def untouched(function, *inputs, **keywords):
    """function(*inputs), dicts of tensors and lists of them, none of which it may change."""
    flat = [d for given in inputs for d in (given if isinstance(given, list) else [given])]
    copies = [mapped(torch.clone, d) for d in flat]
    got = function(*inputs, **keywords)
    assert all(map(same, flat, copies)), f"{function.__name__} changes its input: make new tensors"
    return got


def hint(error):
    """What a grader or a blank says, in a line; of any other error its place in the stage, too."""
    says = str(error.value).partition("\n")[0]
    places = [(Path(entry.path).name, entry.lineno + 1) for entry in error.traceback]
    lines = [f" ({name}, line {line})" for name, line in places if name.startswith("stage")]
    told = says and error.errisinstance((AssertionError, NotImplementedError))
    return says if told else f"{error.typename}: {says}{lines[-1] if lines else ''}"
