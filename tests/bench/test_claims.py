"""bench.claims: effects by hand from three seeds, the verdicts, and what is missing by name."""

import json

import pytest

from bench import claims, tables


@pytest.mark.parametrize("effects, word", [
    ([0.004, 0.006, 0.008], "confirmed"), ([0.004, 0.005, 0.005], "not seen"),
    ([-0.001, 0.1, 0.1], "not seen"), ([0.0, 0.1, 0.1], "not seen"),
    ([-0.004, -0.006, -0.008], "contradicted"), ([-0.004, -0.005, -0.005], "not seen"),
    ([0.001, -0.1, -0.1], "not seen")])
def test_a_verdict_needs_every_seed_and_half_a_point(effects, word):
    assert claims.verdict(effects) == word


def write(folder, file, **rows):
    """FILE.json with numbers of two seeds for each row."""
    groups = {str(seed): {"rows": {row: {"absolute": values[seed], "normalised": values[seed],
                                         "share": values[seed]} for row, values in rows.items()}}
              for seed in range(2)}
    (folder / f"{file}.json").write_text(json.dumps(groups))


def test_an_effect_is_a_difference_within_a_seed(tmp_path):
    """.5 - .4 and .7 - .4: mean .2, standard deviation .2 / sqrt 2 = .141."""
    write(tmp_path, "claim-lora", ties=(0.5, 0.7), average=(0.4, 0.4))
    more, less = (("claim-lora", row, "share") for row in ("ties", "average"))
    assert claims.cells(tmp_path, more, less) == ["+0.200 ± 0.141", "confirmed"]
    assert claims.cells(tmp_path, less, more) == ["-0.200 ± 0.141", "contradicted"]


def test_the_tables_are_made_from_the_files_that_the_steps_write(tmp_path, command):
    code, _, err = command(claims.main, "--folder", tmp_path)
    assert code == 2 and "claim-l_lora.model.json: python -m bench.tables claim" in err
    every = {rule: (0.5, 0.6) for row in claims.BETTER for rule in row[2:]}
    made = [text.split("--json runs/tables/")[1].split()[0]
            for step in ("claim", "rules") for text in tables.STEPS[step]]
    for file in made:
        write(tmp_path, file.removesuffix(".json"), **every)
    code, out, err = command(claims.main, "--folder", tmp_path)
    assert code == 0, err
    assert out.count("+0.000 ± 0.000 | ") + out.count("not seen") == 4 * (
        len(claims.LINEARIZED) + len(claims.BETTER))
