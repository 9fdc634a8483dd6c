"""What is published in the source tree: text and JSON agree, and say what was measured."""

import json

from experiments.claims import CLAIMS
from experiments.claims.readme import HERE, PUBLISHED, publish_results, readme
from experiments.claims.runner import verify


def silently(line):
    """Says nothing."""


def test_the_text_in_the_tree_is_made_of_the_json_beside_it():
    results = json.loads((HERE / "results.json").read_text())
    assert (HERE / "README.md").read_text() == readme(results), "bilevel verify --publish writes both"
    assert all({*result} == {*PUBLISHED} for result in results.values())
    assert [*results] == [name for name in CLAIMS if name in results]


def test_results_are_published_with_their_numbers_and_those_of_others_stay(claims, tmp_path):
    verify(("P0.one",), tmp_path / "out", say=silently)
    home = tmp_path / "home"
    page = publish_results(tmp_path / "out" / "full", home)
    first = json.loads((home / "results.json").read_text())
    assert [*first] == ["P0.one"] and first["P0.one"]["numbers"]["x"]["center"] == 1.0
    assert "tables" not in first["P0.one"] and len(first["P0.one"]["measured"]) > 0
    verify(("P0.two",), tmp_path / "other", say=silently)
    publish_results(tmp_path / "other" / "full", home)
    both = json.loads((home / "results.json").read_text())
    assert [*both] == ["P0.one", "P0.two"] and both["P0.one"] == first["P0.one"]
    text = page.read_text()
    assert text == readme(both)
    assert "| [P0.two](#p0two) | A \\< B & C. | one | x: 2 – | **fails** |" in text
    assert "| y | 0 | [-inf, inf] |  | reported: never |".replace("[", "\\[").replace("]", "\\]") in text
    assert "- a \\< b" in text and "Cost: 12,345 transitions; " in text


def test_a_claim_that_is_no_longer_in_the_list_is_not_published(claims, tmp_path):
    verify((), tmp_path / "out", say=silently)
    publish_results(tmp_path / "out" / "full", tmp_path)
    CLAIMS.remove("P0.one")
    publish_results(tmp_path / "out" / "full", tmp_path)
    assert [*json.loads((tmp_path / "results.json").read_text())] == ["P0.two"]
    assert "P0.one" not in (tmp_path / "README.md").read_text()


def test_signs_of_the_text_stand_for_themselves(claims, tmp_path):
    claims.change("P0.one", statement="‖λ* − π*‖ ≤ |x_1|, `a` [b](c)")
    verify(("P0.one",), tmp_path / "out", say=silently)
    text = publish_results(tmp_path / "out" / "full", tmp_path).read_text()
    assert r"‖λ\* − π\*‖ ≤ \|x\_1\|, \`a\` \[b\](c)" in text
