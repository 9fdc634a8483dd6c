"""`bilevel verify`: what it prints and writes, and its exit codes."""

import json

import pytest
from fake_claims import measurement

from experiments.__main__ import main
from experiments.claims import CLAIMS
from experiments.claims.claim import Margin, Measurement, Number
from experiments.claims.runner import load, verify
from experiments.commands import verify as command
from experiments.runs.folder import open_run


def silently(line):
    """Says nothing."""


def test_the_command_prints_a_table_and_writes_a_page(claims, tmp_path, capsys):
    assert main(["verify", "--quick", "--out", str(tmp_path)]) == 1  # a claim fails
    said = capsys.readouterr().out
    assert "P0.one  HOLDS" in said and "P0.two  FAILS" in said and "[0.5, 1.5]" in said and "never" in said
    assert "A < B & C." in said and "Predicted: one" in said and "(a paper; Monte Carlo)" in said
    assert "Cost: 12,345 transitions" in said and said.count("Note: a < b") == 1  # of the claim that fails
    folder = tmp_path / "quick"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["P0.two"]["numbers"]["x"]["interval"] == [2.0, 2.0]
    assert summary["P0.two"]["numbers"]["y"] == {
        "center": 0,
        "interval": ["-inf", "inf"],
        "margin": None,
        "verdict": "reported",
        "undecided": "never",
        "over": "",
        "tail": None,
    }
    assert summary["P0.two"]["tables"] == [
        {"title": "A table", "rows": [{"seed": 1, "gap": 0.25, "ends": [0.1, "inf"]}]}
    ]
    page = (folder / "report.html").read_text()
    assert "A &lt; B &amp; C." in page and "a &lt; b" in page and page.count("data:image/png;base64") == 2
    assert '<span class="fails">fails</span>' in page and "12,345 transitions" in page and "http" not in page
    assert page.count("<td>1</td><td>0.25</td><td>[0.1, inf]</td>") == 2
    main(["verify", "P0.one", "--quick", "--out", str(tmp_path)])  # the page goes on showing both
    assert (folder / "report.html").read_text() == page


def test_an_error_and_a_claim_that_fails_have_other_exit_codes(claims, tmp_path, capsys):
    assert main(["verify", "P0.two", "--out", str(tmp_path)]) == 1
    claims.change("P0.one", judge=lambda found: 1 / 0)
    assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert "stopped by an error, shown at the end: ZeroDivisionError" in said.out and "Traceback" in said.err


def test_a_claim_that_cannot_be_loaded_costs_the_others_nothing(claims, tmp_path, capsys):
    CLAIMS.append("P0.lost")
    assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 0
    assert main(["verify", "--list"]) == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if "P0.lost" in line and "cannot be loaded" in line]) == 2
    assert main(["verify", "--out", str(tmp_path)]) == 3  # all of them
    said = capsys.readouterr()
    assert "1 holds, 1 fails, 1 stopped by an error" in said.out and "p0.lost" in said.err
    assert json.loads((tmp_path / "full" / "summary.json").read_text()).keys() == {"P0.one", "P0.two"}


def test_what_is_no_folder_is_refused_before_anything_is_measured(claims, tmp_path, capsys):
    verify(("P0.two",), tmp_path, say=silently)
    (tmp_path / "full" / "P0.one").touch()
    assert main(["verify", "--out", str(tmp_path)]) == 2
    assert "P0.one is not a folder" in capsys.readouterr().err and claims.measured == {"P0.one": 0, "P0.two": 1}


def test_one_process_at_a_time_writes_to_a_folder(claims, tmp_path, capsys):
    verify(("P0.one",), tmp_path, say=silently)
    with open_run(tmp_path / "full"):
        assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 2
    assert "is held by process" in capsys.readouterr().err


def test_a_refuted_assumption_is_told_with_its_share_and_is_no_failure_of_the_code(claims, tmp_path, capsys):
    shares = {"y, w = 1": Number(0.0, 0.0, 0.17), "y, w = 2": Number(1.0, 0.83, 1.0)}
    for i, name in enumerate(claims.measured):  # of the second nothing refutes
        measured = Measurement(dict([*shares.items()][: 2 - i]), {}, ("a note",))
        claims.change(name, judge=lambda found, x=measured: x, draw=None, margins={}, refuting="y")
    assert main(["verify", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "P0.one  REFUTED, on 0 to 100 % of instances (2 numbers)\n" in said and "P0.two  NOT REFUTED\n" in said
    assert "1 refuted, 1 not refuted" in said and "Note: a note" in said
    summary = json.loads((tmp_path / "full" / "summary.json").read_text())
    assert [x["verdict"] for x in summary.values()] == ["refuted", "not refuted"]
    assert {name: x["verdict"] for name, x in summary["P0.one"]["numbers"].items()} == {
        "y, w = 1": "not refuted",
        "y, w = 2": "refuted",
    }
    page = (tmp_path / "full" / "report.html").read_text()
    assert page.count('class="refuted">refuted, on 0 to 100 % of instances (2 numbers)<') == 2
    assert "<td>[0.83, 1]</td>" in page
    assert 'class="not-refuted">not refuted<' in page and 'class="not refuted"' not in page


def test_what_has_no_interval_shows_a_dash_and_what_it_is_of(claims, tmp_path, capsys):
    numbers = {"x": Number(4e-8, 4e-8, 4e-8, over="least of 64 MDPs"), "y": Number(1.0, 0.5, 2.0)}
    claims.change("P0.one", judge=lambda found: Measurement(numbers, {}), margins={"x": Margin(0.0)})
    main(["verify", "P0.one", "--out", str(tmp_path)])
    page = (tmp_path / "full" / "report.html").read_text()
    assert "<td>4e-08</td><td>–</td>" in page and "<td>[0.5, 2]</td>" in page and "holds: least of 64 MDPs" in page
    said = capsys.readouterr().out
    assert "[0.5, 2]" in said and "[4e-08" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["P0.on"], ["claim is 'P0.on'", "P0.one, P0.two", "did you mean claim P0.one?"]),
        (["P1.*"], ["'P1.*' matches no claim", "required", "P0.one, P0.two"]),
        (["--slow"], ["verify got --slow", "--quick"]),
        (["--out"], ["--out was given without a value"]),
        (["--publish", "--quick"], ["--publish got --quick", "full budgets"]),
    ],
)
def test_mistakes_get_one_line(claims, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *arguments]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and all(word in said.err for word in words), said.err
    assert not said.out and not [*tmp_path.iterdir()]


def test_all_takes_the_claims_without_a_verdict_too(claims, tmp_path, capsys):
    claims.change("P0.two", margins={}, judge=lambda found: measurement(found)._replace(numbers={}))
    assert main(["verify", "--out", str(tmp_path)]) == 0 and claims.measured["P0.two"] == 0
    assert main(["verify", "P0.*", "--all", "--out", str(tmp_path)]) == 0 and claims.measured["P0.two"] == 1
    assert "1 holds, 1 reported" in capsys.readouterr().out


def test_the_list_names_every_claim_with_what_it_costs(capsys):
    assert main(["verify", "--list"]) == 0
    said = capsys.readouterr().out
    for name in CLAIMS:
        claim = load(name).claim
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [name]]
        assert claim.statement in line and line.split()[1:3] == [f"{x:g}" for x in claim.minutes]
    assert main(["verify", "--list", "--json", *CLAIMS[:1]]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [*listed] == CLAIMS[:1] and listed[CLAIMS[0]]["judged"] is True


def test_results_in_full_are_published_when_asked_for(claims, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(command, "publish_results", lambda folder: seen.append(folder) or tmp_path / "README.md")
    main(["verify", "P0.one", "--out", str(tmp_path)])
    assert not seen
    main(["verify", "P0.one", "--publish", "--out", str(tmp_path)])
    assert seen == [tmp_path / "full"] and f"published: {tmp_path / 'README.md'}" in capsys.readouterr().out
