"""What every rule does without --set. The numbers of docs/rules.md were measured with it, so a
default changes together with those tables or not at all."""

import pytest

import merge
import rules  # noqa: F401  (fills RULES)

ADAMERGING = {"density": None, "steps": 150, "lr": 5e-3, "batch": 16, "init": 0.3, "seed": 0}
DEFAULTS = {
    "adamerging_layer": ADAMERGING | {"groups": "tensor"},
    "adamerging_layer_pp": ADAMERGING | {"groups": "tensor", "density": 0.2},
    "adamerging_task": ADAMERGING | {"groups": "task"},
    "adamerging_task_pp": ADAMERGING | {"groups": "task", "density": 0.2},
    "analogy": {"lam": 1.0},
    "average": {},
    "breadcrumbs": {"density": 0.9, "gamma": 0.01, "lam": 0.3},
    "consensus": {"threshold": 0.4, "agree": 2, "lam": 0.3},
    "dare": {"drop": 0.5, "lam": 0.3, "seed": 0},
    "dare_ties": {"drop": 0.5, "density": 1.0, "agg": "mean", "lam": 1.0, "seed": 0},
    "della": {"drop": 0.5, "epsilon": 0.1, "lam": 1.0, "seed": 0},
    "emr": {},
    "fisher": {"examples": 32, "normalize": True, "floor": 1e-6},
    "fitted": {"groups": "task", "steps": 60, "lr": 0.02, "batch": 16, "l2": 0.01,
               "simplex": False, "group_penalty": 0.0, "seed": 0},
    "gram_schmidt": {"lam": 1.0},
    "int8": {"lam": 0.3},
    "interpolation": {"alpha": 0.5},
    "iso_c": {"lam": 1.0},
    "iso_cts": {"common": 0.8, "lam": 1.0},
    "knots": {"density": 0.2, "agg": "mean", "lam": 1.0},
    "layerwise": {"coefficients": None, "lam": 1.0},
    "lorahub": {"budget": 40, "l1": 0.05, "bound": 1.5, "shots": 16, "seed": 0},
    "magmax": {"lam": 0.5},
    "model_stock": {"lam": 1.0},
    "negation": {"lam": 1.0},
    "pcb": {"density": 0.05, "clip": 0.01, "lam": 1.2},
    "pem": {"signs": None, "lam": 1.0},
    "pleas": {"heads": None, "ridge": 1e-6},
    "regmean": {"examples": 256, "shrink": 0.9},
    "regmean_pp": {"examples": 64, "shrink": 0.9},
    "score_weighted": {"lam": 1.0},
    "slerp": {"t": 0.5, "lam": 1.0},
    "symmetric_orthogonal": {"lam": 1.0},
    "tall": {"threshold": 0.4},
    "task_arithmetic": {"lam": 0.3, "coefficients": None},
    "ties": {"density": 0.2, "agg": "mean", "lam": 1.0},
    "tsv": {"lam": 1.0},
    "twin": {"keep": 0.1, "lam": 0.3, "steps": 200, "hidden": 64, "lr": 0.01, "seed": 0},
    "wudi": {"lam": 1.0},
}
COUNTS = {"analogy": 3, "interpolation": 2, "pleas": 2, "slerp": 2}
SPACES = {"pem": "adapter"} | dict.fromkeys(
    ("iso_c", "iso_cts", "knots", "pleas", "regmean", "regmean_pp", "tsv", "wudi"), "weight")


def test_the_table_has_every_rule():
    assert sorted(DEFAULTS) == sorted(merge.RULES)


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_number_of_tasks_and_space(name):
    rule, options = merge.RULES[name], merge.options(name)
    assert options == DEFAULTS[name]
    assert {k: type(v) for k, v in options.items()} == {
        k: type(v) for k, v in DEFAULTS[name].items()}                        # False is not 0
    assert (rule.count, rule.space) == (COUNTS.get(name), SPACES.get(name))
