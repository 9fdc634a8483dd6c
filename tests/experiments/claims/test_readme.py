"""What is published in the source tree: texts and JSON agree, and say what was measured."""

import json

import pytest

from experiments.claims import CLAIMS
from experiments.claims.readme import BEGIN, END, FRONT, HOME, TREE, UNPUBLISHED, front_page, publish_results, readme
from experiments.claims.runner import load_each, verify
from experiments.files import RunFolderError

MOST_CELL = 200  # characters


def silently(line):
    """Says nothing."""


@pytest.fixture
def tree(tmp_path):
    """A source tree with a front page alone."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / FRONT).write_text(f"# What it is\n\n{BEGIN}\n{END}\n\nThe rest.\n")
    return tmp_path / "tree"


def test_the_texts_in_the_tree_are_made_of_the_json_beside_the_claims():
    results = json.loads((TREE / HOME / "results.json").read_text())
    assert (TREE / HOME / "README.md").read_text() == readme(results), "bilevel verify --publish writes all three"
    front = (TREE / FRONT).read_text()
    assert front == front_page(front, results), "bilevel verify --publish writes all three"
    assert not any(UNPUBLISHED & {*result} for result in results.values())
    assert len({frozenset(result) for result in results.values()}) <= 1
    assert [*results] == [name for name in CLAIMS if name in results]


def test_what_a_claim_says_fits_into_a_cell():
    loaded, _ = load_each(CLAIMS)
    for name, (claim, *_) in loaded.items():
        assert len(f"{name}: {claim.statement}") <= MOST_CELL, name


def test_results_are_published_with_their_numbers_and_those_of_others_stay(claims, tree, tmp_path):
    verify(("P0.one",), tmp_path / "out", say=silently)
    page = publish_results(tmp_path / "out" / "full", tree)
    first = json.loads((tree / HOME / "results.json").read_text())
    assert [*first] == ["P0.one"] and first["P0.one"]["numbers"]["x"]["center"] == 1.0
    assert "tables" not in first["P0.one"] and len(first["P0.one"]["measured"]) > 0
    verify(("P0.two",), tmp_path / "other", say=silently)
    publish_results(tmp_path / "other" / "full", tree)
    both = json.loads((tree / HOME / "results.json").read_text())
    assert [*both] == ["P0.one", "P0.two"] and both["P0.one"] == first["P0.one"]
    text = page.read_text()
    assert text == readme(both)
    assert r"| [P0.two](#p0two) | A \< B & C. | x: \[0.5, 1.5\] | 2 – | **fails** |" in text
    assert "| y | 0 | [-inf, inf] |  | reported: never |".replace("[", "\\[").replace("]", "\\]") in text
    assert "- a \\< b" in text and "Predicted: one." in text and "Cost: 12,345 transitions; " in text


def test_the_front_page_gets_the_table_of_those_with_a_verdict_and_keeps_the_rest(claims, tree, tmp_path):
    claims.change("P0.one", margins={})
    verify(("P0.*",), tmp_path / "out", everything=True, say=silently)
    for _ in range(2):  # once more changes nothing
        publish_results(tmp_path / "out" / "full", tree)
        text = (tree / FRONT).read_text()
        assert text.startswith(f"# What it is\n\n{BEGIN}\n\n| claim |") and text.endswith(f"|\n\n{END}\n\nThe rest.\n")
        rows = [line for line in text.splitlines() if line.startswith("| P0")]
        assert rows == [r"| P0.two: A \< B & C. | x: \[0.5, 1.5\] | 2 – | **fails** |"]
    assert r"| [P0.one](#p0one) | A \< B & C. | – | x: 1 – | **reported** |" in (tree / HOME / "README.md").read_text()


def test_one_number_stands_for_a_claim_which_has_its_verdict(claims, tree, tmp_path):
    claims.change("P0.one", margins={}, refuting="x")
    verify(("P0.one",), tmp_path / "out", say=silently)
    text = publish_results(tmp_path / "out" / "full", tree).read_text()
    assert r"| A \< B & C. | assumed | x: 1 – | **refuted, on 100 % of instances** |" in text


def test_nothing_is_published_where_the_front_page_has_no_place_for_it(claims, tree, tmp_path):
    verify(("P0.one",), tmp_path / "out", say=silently)
    (tree / FRONT).write_text(f"{END} {BEGIN}")
    with pytest.raises(RunFolderError, match="has no place for the claims; required: a line <!-- claims"):
        publish_results(tmp_path / "out" / "full", tree)
    (tree / FRONT).unlink()
    with pytest.raises(RunFolderError, match="required: the source tree"):
        publish_results(tmp_path / "out" / "full", tree)
    assert [*tree.iterdir()] == []


def test_a_claim_that_is_no_longer_in_the_list_is_not_published(claims, tree, tmp_path):
    verify((), tmp_path / "out", say=silently)
    publish_results(tmp_path / "out" / "full", tree)
    CLAIMS.remove("P0.one")
    publish_results(tmp_path / "out" / "full", tree)
    assert [*json.loads((tree / HOME / "results.json").read_text())] == ["P0.two"]
    assert "P0.one" not in (tree / HOME / "README.md").read_text()


def test_signs_of_the_text_stand_for_themselves(claims, tree, tmp_path):
    claims.change("P0.one", statement="‖λ* − π*‖ ≤ |x_1|, `a` [b](c)")
    verify(("P0.one",), tmp_path / "out", say=silently)
    text = publish_results(tmp_path / "out" / "full", tree).read_text()
    assert r"‖λ\* − π\*‖ ≤ \|x\_1\|, \`a\` \[b\](c)" in text
