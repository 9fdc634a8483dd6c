"""Claims: the rule by which they hold, how they are run, and that each fails where its statement is made false."""

import json
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.__main__ import main
from experiments.runs.folder import open_run
from experiments.statistics.rates import power_law
from experiments.studies import variance
from experiments.verify import CLAIMS, p1_bias, p1_estimator, p1_value, runner
from experiments.verify.claims import INF, Budget, Claim, Interval, Margin, Measurement, exponent, judge, together
from experiments.verify.page import write_page
from experiments.verify.runner import describe, format_table, verify

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


def test_an_exponent_names_its_range_and_holds_only_if_its_last_levels_clear_the_margin(tmp_path):
    budgets, rng = 4.0 ** np.arange(7), np.random.default_rng(0)
    law = power_law(budgets, budgets[:, None] ** -0.6 * rng.lognormal(0, 0.7, (7, 64)), floor=False)
    fits = {"law": law, "stalls": law._replace(tail=(0.1, 0.5))}
    numbers = {name: exponent(fit, "samples") for name, fit in fits.items()}
    ours = claim(law=(2 / 7, INF), stalls=(2 / 7, INF))
    assert judge(ours, numbers) == {"law": "holds", "stalls": "not decided"}
    found = describe(ours, Measurement(numbers, {})) | {"seconds": 1.0, "quick": False, "figure": ""}
    assert found["numbers"]["law"]["over"] == "from 1 to 4.1e+03 samples" and found["numbers"]["law"]["tail"][0] > 2 / 7
    page = write_page(tmp_path, {"P0.one": found}).read_text()
    for said in (format_table({"P0.one": found}), page):
        assert said.count("from 1 to 4.1e+03 samples; at the last levels [") == 2


def test_a_claim_holds_if_all_its_numbers_do():
    assert together({}) == "reported"
    assert together({"x": "holds", "y": "holds"}) == "holds"
    assert together({"x": "holds", "y": "not decided"}) == "not decided"
    assert together({"x": "not decided", "y": "fails", "z": "holds"}) == "fails"


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        ((0.05, 0.001, 0.25), "refuted"),
        ((1.0, 0.83, 1.0), "refuted"),
        ((0.0, 0.0, 0.17), "not refuted"),
        ((float("nan"), float("nan"), float("nan")), "not refuted"),
        ((1.0, 0.83, 1.0, "by hand"), "not refuted"),
    ],
)
def test_an_assumption_is_refuted_where_the_share_of_instances_that_do_lies_above_0(share, expected):
    ours = claim()._replace(refuting="share")
    numbers = {"share at w = 1": Interval(*share), "share at w = 2": Interval(0, 0, 0.1), "other": Interval(1, 1, 1)}
    verdicts = judge(ours, numbers)
    assert verdicts == {"share at w = 1": expected, "share at w = 2": "not refuted"}
    assert together(verdicts) == expected


@pytest.mark.parametrize("vague", [(float("nan"), 0.2, 0.4), (0.5, 0.6, 0.4), (INF, 0.2, 0.4)])
def test_no_number_or_no_interval_decides_nothing(vague):
    assert judge(claim(x=(0, 1)), {"x": Interval(*vague)}) == {"x": "not decided"}


def test_a_number_that_was_not_measured_is_not_decided_and_what_was_is_kept():
    found = describe(claim(x=(0, 1)), Measurement({"y": Interval(0, 0, 0)}, {}))
    assert found["verdict"] == found["numbers"]["x"]["verdict"] == "not decided"
    assert found["numbers"]["x"]["undecided"] == "not measured" and found["numbers"]["y"]["center"] == 0


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
    # What the other found is told and written before the error is raised.
    assert any("P0.two  FAILS" in line for line in said) and "1 fails, 1 stopped by an error" in said
    assert json.loads((tmp_path / "full" / "summary.json").read_text()).keys() == {"P0.two"}
    page = (tmp_path / "full" / "report.html").read_text()
    assert "<h2 id='P0.two'>" in page and "P0.one" not in page


def test_an_error_and_a_claim_that_fails_have_other_exit_codes(claims, tmp_path, monkeypatch, capsys):
    assert main(["verify", "P0.two", "--out", str(tmp_path)]) == 1
    module = sys.modules["experiments.verify.fake0"]
    monkeypatch.setattr(module, "CLAIM", module.CLAIM._replace(measure=lambda budget: 1 / 0))
    assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert "stopped by an error, shown at the end: ZeroDivisionError" in said.out and "Traceback" in said.err


def test_a_claim_that_cannot_be_loaded_costs_the_others_nothing(claims, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(CLAIMS, "P0.lost", "no_such_file")
    assert main(["verify", "P0.one", "--out", str(tmp_path)]) == 0
    assert main(["verify", "--help"]) == 0
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if "P0.lost" in line and "cannot be loaded" in line]) == 2
    assert main(["verify", "--out", str(tmp_path)]) == 3  # all of them
    said = capsys.readouterr()
    assert "1 holds, 1 fails, 1 stopped by an error" in said.out and "no_such_file" in said.err
    assert json.loads((tmp_path / "full" / "summary.json").read_text()).keys() == {"P0.one", "P0.two"}


def test_of_two_claims_that_break_the_first_s_error_is_raised(claims, tmp_path, monkeypatch):
    for i in range(2):
        module = sys.modules[f"experiments.verify.fake{i}"]

        def broken(budget, i=i):
            raise ZeroDivisionError(f"number {i}")

        monkeypatch.setattr(module, "CLAIM", module.CLAIM._replace(measure=broken))
    with pytest.raises(ZeroDivisionError, match="number 0"):
        verify((), tmp_path, say=lambda line: None)
    assert json.loads((tmp_path / "full" / "summary.json").read_text()) == {}


def test_the_time_announced_is_that_of_what_was_not_measured_before(claims, tmp_path):
    said: list[str] = []
    verify(("P0.one",), tmp_path, say=said.append)
    verify((), tmp_path, say=said.append)
    verify((), tmp_path, say=said.append)
    announced = [line.partition(" minutes")[0] for line in said if "to measure" in line]
    assert announced == [
        "1 claim, 1 to measure: at most about 0.2",
        "2 claims, 1 to measure: at most about 0.2",
        "2 claims, 0 to measure: at most about 0",
    ]


def test_parts_of_a_measurement_by_other_code_are_not_used(claims, tmp_path, monkeypatch):
    module = sys.modules["experiments.verify.fake0"]
    whole, seen = module.CLAIM, []

    def measure(budget):
        seen.append(sorted(path.name for path in budget.folder.iterdir()))
        (budget.folder / "part.npz").touch()
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
    assert seen == [[started], ["part.npz", started], [started], ["part.npz", started]]


def test_threads_of_one_claim_may_speak_at_once(claims, tmp_path, monkeypatch):
    module = sys.modules["experiments.verify.fake0"]
    whole = module.CLAIM

    def measure(budget):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(budget.say, ["half"] * 400))
        return whole.measure(budget)

    monkeypatch.setattr(module, "CLAIM", whole._replace(measure=measure))
    said: list[str] = []
    assert verify(("P0.one",), tmp_path, say=said.append)["P0.one"]["verdict"] == "holds"
    assert said.count("P0.one            half") == 401


def test_code_that_changes_meanwhile_does_not_pass_for_what_was_measured(claims, tmp_path, monkeypatch):
    code = ["old"]
    monkeypatch.setattr(runner, "digest", lambda module: code[0])
    module = sys.modules["experiments.verify.fake0"]
    whole = module.CLAIM

    def measure(budget):
        code[0] = "new"
        return whole.measure(budget)

    monkeypatch.setattr(module, "CLAIM", whole._replace(measure=measure))
    verify(("P0.one",), tmp_path, say=lambda line: None)
    assert json.loads((tmp_path / "full" / "summary.json").read_text())["P0.one"]["digest"] == "old"
    verify(("P0.one",), tmp_path, say=lambda line: None)
    assert claims["P0.one"] == 2


def test_the_time_of_attempts_that_were_cut_short_is_counted(claims, tmp_path, monkeypatch):
    module = sys.modules["experiments.verify.fake0"]
    whole, clock = module.CLAIM, [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])

    def measure(budget):
        clock[0] += 100.0
        measured = whole.measure(budget)  # says a line
        clock[0] += 1.0
        if claims["P0.one"] == 1:
            raise KeyboardInterrupt
        return measured

    monkeypatch.setattr(module, "CLAIM", whole._replace(measure=measure))
    with pytest.raises(KeyboardInterrupt):
        verify(("P0.one",), tmp_path, say=lambda line: None)
    assert verify(("P0.one",), tmp_path, say=lambda line: None)["P0.one"]["seconds"] == 201.0


@pytest.mark.parametrize(
    "damage", ['{"digest": "experiments.verify.fake0"}', "{", "[1]", "", "edited", "no figure", "half a figure"]
)
def test_a_damaged_result_is_measured_again(damage, claims, tmp_path):
    whole = verify(("P0.one",), tmp_path, say=lambda line: None)
    file = tmp_path / "full" / "P0.one" / runner.RESULT
    figure = file.parent / runner.FIGURE
    if damage == "no figure":
        figure.unlink()
    elif damage == "half a figure":
        figure.write_bytes(figure.read_bytes()[:-100])
    else:
        file.write_text(file.read_text().replace("1.5", "2.5") if damage == "edited" else damage)
    said: list[str] = []
    verify(("P0.two",), tmp_path, say=said.append)  # left out of the page meanwhile, and that is said
    assert any("P0.one" in line and "left out" in line for line in said)
    again = verify(("P0.one",), tmp_path, say=said.append)
    assert claims["P0.one"] == 2 and again["P0.one"]["numbers"] == whole["P0.one"]["numbers"]
    (tmp_path / "full" / "P0.one" / runner.STARTED).write_text(damage)
    assert verify(("P0.one",), tmp_path, say=said.append) == again


def test_what_is_no_folder_is_refused_before_anything_is_measured(claims, tmp_path, capsys):
    verify(("P0.two",), tmp_path, say=lambda line: None)
    (tmp_path / "full" / "P0.one").touch()
    assert main(["verify", "--out", str(tmp_path)]) == 2
    assert "P0.one is not a folder" in capsys.readouterr().err and claims == {"P0.one": 0, "P0.two": 1}


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


def test_relative_imports_count(tmp_path, monkeypatch):
    package = tmp_path / "fakes"
    package.mkdir()
    for name, code in (("__init__", "from . import a"), ("a", "from .b import x"), ("b", "x = 1"), ("c", "")):
        (package / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "OURS", ("fakes",))
    assert runner.imported("fakes.a") == {"fakes.a", "fakes.b"}
    assert runner.imported("fakes") == {"fakes", "fakes.a", "fakes.b"}


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
        "center": 0.0,
        "interval": ["-inf", "inf"],
        "margin": None,
        "verdict": "reported",
        "undecided": "never",
        "over": "",
        "tail": None,
    }
    page = (folder / "report.html").read_text()
    assert "A &lt; B &amp; C." in page and "a &lt; b" in page and page.count("data:image/png;base64") == 2
    assert "class='fails'>fails" in page and "12,345 transitions" in page and "http" not in page
    main(["verify", "P0.one", "--quick", "--out", str(tmp_path)])  # the page goes on showing both
    assert (folder / "report.html").read_text() == page


def test_a_refuted_assumption_is_told_with_its_share_and_is_no_failure_of_the_code(
    claims, tmp_path, monkeypatch, capsys
):
    shares = {"y, w = 1": Interval(0.0, 0.0, 0.17), "y, w = 2": Interval(1.0, 0.83, 1.0)}
    for i in range(2):  # of the second nothing refutes
        module, numbers = sys.modules[f"experiments.verify.fake{i}"], dict([*shares.items()][: 2 - i])
        measured = Measurement(numbers, {}, None, ("a note",))
        assumed = module.CLAIM._replace(measure=lambda budget, x=measured: x, margins={}, refuting="y")
        monkeypatch.setattr(module, "CLAIM", assumed)
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
    assert page.count("class='refuted'>refuted, on 0 to 100 % of instances (2 numbers)<") == 2
    assert "<td>[0.83, 1]</td>" in page
    assert "class='not-refuted'>not refuted<" in page and "class='not refuted'" not in page


def test_what_has_no_interval_shows_a_dash_and_what_it_is_of(claims, tmp_path, capsys, monkeypatch):
    measured = Measurement({"x": Interval(4e-8, 4e-8, 4e-8, over="least of 64 MDPs"), "y": Interval(1.0, 0.5, 2.0)}, {})
    module = sys.modules["experiments.verify.fake0"]
    monkeypatch.setattr(
        module, "CLAIM", module.CLAIM._replace(measure=lambda budget: measured, margins={"x": Margin(0.0)})
    )
    main(["verify", "P0.one", "--out", str(tmp_path)])
    page = (tmp_path / "full" / "report.html").read_text()
    assert "<td>4e-08</td><td>–</td>" in page and "<td>[0.5, 2]</td>" in page and "holds: least of 64 MDPs" in page
    said = capsys.readouterr().out
    assert "[0.5, 2]" in said and "[4e-08" not in said


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


def test_errors_that_two_claims_ask_for_at_once_are_computed_once(monkeypatch):
    calls = []

    def slowly(keys, power):
        calls.append(threading.get_ident())
        time.sleep(0.2)
        return np.ones((2, 3)), np.ones((2, 3))

    monkeypatch.setattr(p1_bias, "all_instances", slowly)
    p1_bias.measured.cache_clear()
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(p1_bias.errors, 2, 7.0) for _ in range(2))
        assert one.result() is other.result()
    p1_bias.measured.cache_clear()
    assert len(calls) == 1


OFF = {name: margin for name, margin in p1_estimator.CLAIM.margins.items() if "off" in name}
SLOPES = {name: margin for name, margin in p1_estimator.CLAIM.margins.items() if name not in OFF}


def test_a_biased_estimator_is_noticed_and_few_samples_decide_nothing_wrongly():
    ours = p1_estimator.CLAIM._replace(margins=OFF)
    assert len(OFF) == len(p1_estimator.DERIVATIVES)
    planted = judge(ours, p1_estimator.deviations(320, wrong=0.8))
    assert planted == dict.fromkeys(OFF, "fails")
    assert "fails" not in judge(ours, p1_estimator.deviations(40)).values()


def line_seven(num_batches, bends=0.0):
    """Power laws of the variance of synthetic estimates of line 7 that follow the prediction; the coupled ones jump, rarely.

    The variance of weighted ones grows `bends` times as fast as σ falls, at the last two levels.
    """
    rng, sigmas = np.random.default_rng(0), np.array(variance.SIGMAS)[:, None, None]
    size = len(sigmas), num_batches, 6
    jumps = rng.poisson(32 * sigmas, size) - rng.poisson(32 * sigmas, size)  # of 64 rollouts, of size 1/σ
    rise = np.maximum(sigmas[-3] / sigmas, 1.0) ** (bends / 2)
    samples = {
        "independent": rng.normal(size=size) / sigmas,
        "coupled": jumps / (8 * sigmas),
        "weighted": rng.normal(size=size) * rise,
    }
    return variance.Result({}, {}, {name: variance.analyse(x)[2] for name, x in samples.items()})


def judge_slopes(found):
    """The verdicts on the slopes of the estimators' variance."""
    return judge(p1_estimator.CLAIM._replace(margins=SLOPES), p1_estimator.slopes(found))


def mistaken(found):
    """The same estimates, each taken for another estimator's."""
    names = list(found.law)
    return found._replace(law={name: found.law[names[i - 1]] for i, name in enumerate(names)})


def test_a_variance_of_another_order_is_noticed_and_few_estimates_decide_nothing_wrongly():
    found = line_seven(4000)
    assert judge_slopes(found) == dict.fromkeys(SLOPES, "holds")
    assert judge_slopes(mistaken(found)) == dict.fromkeys(SLOPES, "fails")
    assert p1_estimator.slopes(found)["slope of variance in σ, independent"].over.endswith("to 0.0047 in σ")
    for num_batches in (400, 40):
        assert "fails" not in judge_slopes(line_seven(num_batches)).values()
    assert judge_slopes(line_seven(4)) == dict.fromkeys(SLOPES, "not decided")
    assert judge_slopes(line_seven(4000, bends=1.0))["slope of variance in σ, weighted"] != "holds"


@pytest.mark.slow
def test_the_estimators_are_unbiased_and_their_variances_are_told_apart(tmp_path):
    numbers = p1_estimator.CLAIM.measure(Budget(True, tmp_path)).numbers
    verdicts = judge(p1_estimator.CLAIM, numbers)
    assert "fails" not in verdicts.values()  # a quick run is too vague for the means of the noisier derivatives
    sure = ("∇_λ J", "∇_φ G", "line 7, coupled", "line 7, weighted")
    assert {verdicts[name + p1_estimator.OFF_BY] for name in sure} == {"holds"}
    for name in ("independent", "weighted"):
        assert verdicts[f"slope of variance in σ, {name}"] == "holds"
    found = variance.study(variance.Sizes(num_batches=400))
    assert judge_slopes(mistaken(found)) == dict.fromkeys(SLOPES, "fails")
    assert "fails" not in judge_slopes(variance.study(variance.Sizes(num_batches=40))).values()
