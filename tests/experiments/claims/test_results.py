"""What is reported of a claim, as JSON and in words; what of it is damaged counts as nothing."""

import os

from experiments.claims import results, runner
from experiments.claims.results import in_brackets, in_words, judged_in_words, margin_in_words
from experiments.files import write_json


def number(center, low, high, verdict="holds", **more):
    """A number as a result holds it."""
    about = {"center": center, "interval": [low, high], "verdict": verdict, "margin": None}
    return about | {"undecided": "", "over": "", "tail": None} | more


def test_a_number_without_interval_shows_a_dash():
    assert in_brackets(number(4e-8, 4e-8, 4e-8)) == "–" and in_brackets(number(1.0, 0.5, "inf")) == "[0.5, inf]"
    assert in_brackets(number(None, None, None)) == "–" and in_brackets(number(1, "-inf", 1 / 3)) == "[-inf, 0.3333]"


def test_a_number_says_where_it_must_lie_and_why_it_is_open():
    assert margin_in_words(number(1.0, 1.0, 1.0)) == ""
    assert margin_in_words(number(1.0, 1.0, 1.0, margin=[0.25, "inf"])) == "[0.25, inf]"
    assert judged_in_words(number(1.0, 0.5, 2.0)) == "holds"
    told = number(1.0, 0.5, 2.0, "not decided", undecided="too few", over="from 1 to 2 samples", tail=[0.1, 0.2])
    assert judged_in_words(told) == "not decided: too few; from 1 to 2 samples; at the last levels [0.1, 0.2]"


def test_a_refuted_assumption_is_told_with_the_shares_of_all_numbers_that_might_refute_it():
    shares = {"a": number(0.0, 0.0, 0.17, "not refuted"), "b": number(1.0, 0.83, 1.0, "refuted")}
    other = {"c": number(0.5, 0.4, 0.6, "reported")}
    assert in_words({"verdict": "refuted", "numbers": shares | other}) == (
        "refuted, on 0 to 100 % of instances (2 numbers)"
    )
    assert in_words({"verdict": "refuted", "numbers": {"b": shares["b"]}}) == "refuted, on 100 % of instances"
    assert in_words({"verdict": "not decided", "numbers": {}}) == "not decided"


def test_what_a_claim_left_that_is_damaged_counts_as_nothing(tmp_path):
    said: list[str] = []
    os.mkfifo(tmp_path / results.RESULT)
    assert results.current_result(tmp_path, "ours", "ours", said.append) is None and "damaged result" in said[0]
    write_json(tmp_path, runner.STARTED, {"digest": "ours", "seconds": "long"})
    assert not runner.is_measured(tmp_path, "ours")
    write_json(tmp_path, results.RESULT, results.sealed({"digest": "ours"}))
    assert results.current_result(tmp_path, "ours", "ours", said.append) is None and "result of other code" in said[1]
    os.mkfifo(tmp_path / results.FIGURE)
    assert results.figure_digest(tmp_path) == ""
