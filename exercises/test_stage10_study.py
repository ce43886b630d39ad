"""Grader of stage 10: it ran, the numbers are there, the answer names the winner they have."""

import re

import pytest


@pytest.fixture(scope="module")
def numbers(stage):
    """What study() returns, run once."""
    return stage.study()


def test_study(stage, numbers):
    want = {"pretrained", *stage.RULES}
    assert isinstance(numbers, dict) and numbers.keys() == want, (
        f"study: return a dict with the keys {', '.join(sorted(want))}")
    assert all(isinstance(a, float) and 0 <= a <= 1 for a in numbers.values()), (
        "study: an accuracy is a float between 0 and 1: mean of the two tasks")


def test_study_merges(stage, numbers):
    merged = [numbers[rule] for rule in stage.RULES]
    assert len(set(merged)) > 1, "study: all rules have one accuracy: is the merged model loaded?"
    assert min(merged) > numbers["pretrained"], (
        "study: a merged model is no better than the pretrained one: is base a copy, is the sign "
        "of the task vectors right, and does every task have its own head?")


def test_numbers(stage, numbers):
    assert stage.NUMBERS, "NUMBERS is empty: copy what study() returns"
    off = [k for k, a in numbers.items() if abs(stage.NUMBERS.get(k, 9) - a) > 0.03]
    assert not off, f"NUMBERS is not what study() returns, see {', '.join(off)}: copy it again"


def test_answer(stage):
    assert len(stage.ANSWER.split()) >= 5, "ANSWER is empty: write a sentence"
    words = re.sub(r"task[ -]arithmetic", "task_arithmetic", stage.ANSWER.lower())
    named = [word for word in re.findall(r"\w+", words) if word in stage.RULES]
    assert named, f"ANSWER names no rule: {', '.join(stage.RULES)}"
    best = max(stage.NUMBERS.get(rule, 0) for rule in stage.RULES)
    assert stage.NUMBERS.get(named[0]) == best, (
        f"ANSWER names {named[0]} first, but NUMBERS has a higher accuracy: {best:.3f}")
