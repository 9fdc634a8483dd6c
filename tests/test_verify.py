"""Claims: the rule by which they hold, how they are run, and that each fails where its statement is made false."""

import json
import sys
import types

import pytest
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.run_folder import open_run
from experiments.studies import critic
from experiments.verify import CLAIMS, p1_bias, p1_critic, p1_estimator, p1_value, runner
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement, judge, together
from experiments.verify.runner import describe, verify

# The rule -------------------------------------------------------------------------------------------------------------


def claim(measure=None, **margins):
    return Claim(
        "A < B & C.", "a paper", "one", False, {n: Margin(*m) for n, m in margins.items()}, (0.1, 0.2), measure
    )


@pytest.mark.parametrize(
    ("interval", "margin", "expected"),
    [
        ((0.97, 1.02), (0.95, 1.05), "holds"),
        ((0.94, 1.02), (0.95, 1.05), "not decided"),
        ((0.90, 0.94), (0.95, 1.05), "fails"),
        ((1.06, 1.10), (0.95, 1.05), "fails"),
        ((0.3, 9.0), (2 / 7, INF), "holds"),
        ((0.1, 0.2), (2 / 7, INF), "fails"),
        ((float("nan"), 1.0), (0.95, 1.05), "not decided"),
        ((1.0, float("nan")), (0.95, 1.05), "not decided"),
    ],
)
def test_a_number_holds_inside_its_margin_and_fails_outside(interval, margin, expected):
    ours = claim(x=margin)
    assert judge(ours, {"x": Interval(1.0, *interval), "y": Interval(0, 0, 0)}) == {"x": expected}
    assert judge(ours, {"x": Interval(1.0, *interval, "too few seeds")}) == {"x": "not decided"}


def test_a_claim_holds_if_all_its_numbers_do():
    assert together({}) == "reported"
    assert together({"x": "holds", "y": "holds"}) == "holds"
    assert together({"x": "holds", "y": "not decided"}) == "not decided"
    assert together({"x": "not decided", "y": "fails", "z": "holds"}) == "fails"


def test_a_margin_on_what_was_not_measured_is_a_mistake():
    with pytest.raises(KeyError):
        judge(claim(x=(0, 1)), {"y": Interval(0, 0, 0)})


# The runner -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def claims(monkeypatch):
    """Two claims in place of the papers', and how often each was measured."""
    counts = {"P0.one": 0, "P0.two": 0}

    def measure_of(name, value):
        def measure(budget):
            counts[name] += 1
            budget.say("half")
            if value is None:
                raise KeyboardInterrupt
            numbers = {"x": Interval(value, value, value), "y": Interval(0, -INF, INF, "never")}
            return Measurement(numbers, {"transitions": 12345.0}, Figure(), ("a < b",))

        return measure

    for i, name in enumerate(counts):
        module = types.ModuleType(f"experiments.verify.fake{i}")
        module.CLAIM = claim(measure_of(name, 1.0 + i), x=(0.5, 1.5))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "digest", lambda module: module)
    for name in list(CLAIMS):
        monkeypatch.delitem(CLAIMS, name)
    for i, name in enumerate(counts):
        monkeypatch.setitem(CLAIMS, name, f"fake{i}")
    return counts


def test_what_was_measured_is_not_measured_again(claims, tmp_path, monkeypatch):
    said: list[str] = []
    results = verify((), tmp_path, say=said.append)
    assert [r["verdict"] for r in results.values()] == ["holds", "fails"]
    assert list(claims.values()) == [1, 1]
    again = verify(("P0.two",), tmp_path, say=said.append)
    assert again == {"P0.two": results["P0.two"]} and list(claims.values()) == [1, 1]
    verify(("P0.one",), tmp_path, quick=True, say=said.append)  # another budget, another folder
    assert claims["P0.one"] == 2
    monkeypatch.setattr(runner, "digest", lambda module: "changed")
    verify(("P0.one",), tmp_path, say=said.append)
    assert claims["P0.one"] == 3
    assert any("P0.one" in line and "fails" in line for line in "\n".join(said).splitlines()) is False


def test_an_interrupted_run_goes_on_where_it_was(claims, tmp_path, monkeypatch):
    module = sys.modules["experiments.verify.fake1"]
    whole = module.CLAIM

    def stop(budget):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "CLAIM", whole._replace(measure=stop))
    with pytest.raises(KeyboardInterrupt):
        verify((), tmp_path, say=lambda line: None)
    monkeypatch.setattr(module, "CLAIM", whole)
    results = verify((), tmp_path, say=lambda line: None)
    assert claims == {"P0.one": 1, "P0.two": 1} and len(results) == 2


def test_a_claim_that_breaks_is_named_at_once_and_the_others_are_measured(claims, tmp_path, monkeypatch):
    module, said = sys.modules["experiments.verify.fake0"], []

    def broken(budget):
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(module, "CLAIM", module.CLAIM._replace(measure=broken))
    with pytest.raises(ZeroDivisionError, match="by hand"):
        verify((), tmp_path, say=said.append)
    assert claims["P0.two"] == 1 and any("P0.one" in line and "by hand" in line for line in said)


def test_parts_of_a_measurement_by_other_code_are_not_used(claims, tmp_path, monkeypatch):
    module = sys.modules["experiments.verify.fake0"]
    whole, seen = module.CLAIM, []

    def measure(budget):
        seen.append(sorted(path.name for path in budget.folder.iterdir()))
        (budget.folder / "part").touch()
        if len(seen) < 4:
            raise KeyboardInterrupt
        return whole.measure(budget)

    monkeypatch.setattr(module, "CLAIM", whole._replace(measure=measure))
    for code in ("old", "old", "new"):
        monkeypatch.setattr(runner, "digest", lambda module, code=code: code)
        with pytest.raises(KeyboardInterrupt):
            verify(("P0.one",), tmp_path, say=lambda line: None)
    verify(("P0.one",), tmp_path, say=lambda line: None)
    started = runner.STARTED
    assert seen == [[started], ["part", started], [started], ["part", started]]


@pytest.mark.parametrize("damage", ['{"digest": "experiments.verify.fake0"}', "{", "[1]", ""])
def test_a_damaged_result_is_measured_again(damage, claims, tmp_path):
    whole = verify(("P0.one",), tmp_path, say=lambda line: None)
    (tmp_path / "full" / "P0.one" / runner.RESULT).write_text(damage)
    said: list[str] = []
    verify(("P0.two",), tmp_path, say=said.append)  # left out of the page meanwhile, and that is said
    assert any("P0.one" in line and "left out" in line for line in said)
    again = verify(("P0.one",), tmp_path, say=said.append)
    assert claims["P0.one"] == 2 and again["P0.one"]["numbers"] == whole["P0.one"]["numbers"]
    (tmp_path / "full" / "P0.one" / runner.STARTED).write_text(damage)
    assert verify(("P0.one",), tmp_path, say=said.append) == again


def test_one_process_at_a_time_writes_to_a_folder(claims, tmp_path, capsys):
    verify(("P0.one",), tmp_path, say=lambda line: None)
    with open_run(tmp_path / "full"):
        assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 2
    assert "is held by process" in capsys.readouterr().err


def test_a_claim_depends_on_the_code_that_it_imports():
    ours = runner.imported("experiments.verify.p1_rate")
    assert {"experiments.studies.complexity", "bilevel.exact", "envs.tabular", "experiments.verify.claims"} < ours
    assert not any("alignment" in name or name.startswith("jax") for name in ours)
    assert runner.digest("experiments.verify.p1_rate") != runner.digest("experiments.verify.p1_bias")


def test_the_command_prints_a_table_and_writes_a_page(claims, tmp_path, capsys):
    assert main(["verify", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "P0.one  HOLDS" in said and "P0.two  FAILS" in said and "[0.5, 1.5]" in said and "never" in said
    assert "A < B & C." in said and "Predicted: one" in said and "(a paper; Monte Carlo)" in said
    assert "Cost: 12,345 transitions" in said
    folder = tmp_path / "quick"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["P0.two"]["numbers"]["x"]["interval"] == [2.0, 2.0]
    assert summary["P0.two"]["numbers"]["y"] == {
        "center": 0.0,
        "interval": ["-inf", "inf"],
        "margin": None,
        "verdict": "reported",
        "undecided": "never",
    }
    page = (folder / "report.html").read_text()
    assert "A &lt; B &amp; C." in page and "a &lt; b" in page and page.count("data:image/png;base64") == 2
    assert "class='fails'>fails" in page and "12,345 transitions" in page and "http" not in page
    main(["verify", "P0.one", "--quick", "--out", str(tmp_path)])  # the page goes on showing both
    assert (folder / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["P0.on"], ["claim is 'P0.on'", "P0.one, P0.two", "did you mean claim P0.one?"]),
        (["--slow"], ["verify got --slow", "--quick"]),
        (["--out"], ["--out was given without a value"]),
    ],
)
def test_mistakes_get_one_line(claims, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *arguments]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1 and all(word in said.err for word in words), said.err
    assert not said.out and not [*tmp_path.iterdir()]


def test_the_list_of_claims_is_complete_and_says_what_it_costs(capsys):
    assert main(["verify", "--help"]) == 0
    said = capsys.readouterr().out
    for name in CLAIMS:
        ours, digest = runner.load(name)
        assert name in said and ours.statement in said and len(digest) == 12
        assert 0 < ours.minutes[0] <= ours.minutes[1] <= 60
        assert all(margin.low < margin.high for margin in ours.margins.values())


# Each claim can fail --------------------------------------------------------------------------------------------------


def verdict_of(module, tmp_path, **planted):
    """The verdict of a claim's quick run, in which a violation was planted."""
    measured = module.CLAIM.measure(Budget(True, tmp_path), **planted)
    return describe(module.CLAIM, measured)["verdict"]


@pytest.mark.parametrize("module", [p1_bias, p1_value])
def test_the_proxys_errors_are_proportional_to_sigma_and_another_power_is_noticed(module, tmp_path):
    assert verdict_of(module, tmp_path) == "holds"
    assert verdict_of(module, tmp_path, power=1.1) == "fails"


def test_a_biased_estimator_is_noticed_and_few_samples_decide_nothing_wrongly():
    margins = {name: x for name, x in p1_estimator.CLAIM.margins.items() if "off" in name}
    ours = p1_estimator.CLAIM._replace(margins=margins)
    planted = judge(ours, p1_estimator.deviations(320, wrong=0.9))
    assert planted["∇_λ J: s.e. off"] == planted["∇_φ G: s.e. off"] == planted["line 7, weighted: s.e. off"] == "fails"
    assert "fails" not in judge(ours, p1_estimator.deviations(40)).values()


@pytest.mark.slow
def test_the_estimators_are_unbiased(tmp_path):
    assert verdict_of(p1_estimator, tmp_path) == "holds"


@pytest.mark.slow
def test_a_critic_that_stalls_is_noticed_and_few_samples_decide_nothing_wrongly(tmp_path):
    enough = critic.Sizes(hidden_sizes=((),), fit_steps=2000, num_restarts=4)
    measured = p1_critic.measure(Budget(False, tmp_path), enough)
    assert describe(p1_critic.CLAIM, measured)["verdict"] == "holds"
    stalled = {  # with the number of chains fixed a bias stays
        name: measured.numbers[name.replace(critic.TABLE, critic.FIXED)] if name in p1_critic.LINEAR else x
        for name, x in measured.numbers.items()
    }
    assert describe(p1_critic.CLAIM, measured._replace(numbers=stalled))["verdict"] == "fails"
    few = p1_critic.QUICK._replace(transitions=(128, 512, 2048), num_chains=4, hidden_sizes=())
    assert verdict_of(p1_critic, tmp_path, sizes=few) != "fails"
