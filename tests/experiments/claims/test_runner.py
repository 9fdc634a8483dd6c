"""Claims are measured once, judged and drawn from what was kept, and resumed; what stops one costs the others nothing."""

import ast
import importlib.util
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_claims import Data, measurement
from test_imports import imports

from experiments.claims import CLAIMS, runner
from experiments.claims.data import read_record
from experiments.claims.results import FIGURE, RESULT
from experiments.claims.runner import DATA, STARTED, chosen, load, load_each, verify
from experiments.settings.options import OptionError


def silently(line):
    """Says nothing."""


def test_what_was_measured_is_not_measured_again(claims, tmp_path):
    said: list[str] = []
    results = verify((), tmp_path, say=said.append)
    assert [r["verdict"] for r in results.values()] == ["holds", "fails"]
    assert list(claims.measured.values()) == [1, 1]
    again = verify(("P0.two",), tmp_path, say=said.append)
    assert again == {"P0.two": results["P0.two"]} and list(claims.measured.values()) == [1, 1]
    verify(("P0.one",), tmp_path, quick=True, say=said.append)  # another budget, another folder
    assert claims.measured["P0.one"] == 2
    claims.codes["measured"] = "changed"
    verify(("P0.one",), tmp_path, say=said.append)
    assert claims.measured["P0.one"] == 3
    assert any("P0.one" in line and "fails" in line for line in "\n".join(said).splitlines()) is False


def test_a_change_of_what_judges_or_draws_judges_and_draws_again_what_was_kept(claims, tmp_path):
    before = verify(("P0.one",), tmp_path, say=silently)["P0.one"]
    kept = (tmp_path / "full" / "P0.one" / f"{DATA}.npz").read_bytes()
    claims.change("P0.one", judge=lambda found: measurement(Data(found.value + 5)))
    assert verify(("P0.one",), tmp_path, say=silently)["P0.one"] == before  # the digest is what tells
    claims.codes["reported"], said = "changed", []
    after = verify(("P0.one",), tmp_path, say=said.append)["P0.one"]
    assert after["verdict"] == "fails" and after["numbers"]["x"]["center"] == 6.0
    assert after["seconds"] == before["seconds"] and after["measured"] == before["measured"]
    assert claims.measured["P0.one"] == 1 and claims.drawn["P0.one"] == 2
    assert (tmp_path / "full" / "P0.one" / f"{DATA}.npz").read_bytes() == kept
    assert any("judged or drawn by other code" in line for line in said)
    assert any("1 claim, 0 to measure" in line for line in said)


def test_what_is_judged_and_drawn_is_what_a_later_run_reads(claims, tmp_path):
    seen = []
    claims.change("P0.one", judge=lambda found: seen.append(found) or measurement(found))
    verify(("P0.one",), tmp_path, say=silently)
    kept = read_record(tmp_path / "full" / "P0.one" / f"{DATA}.npz", Data)
    assert repr(seen[0]) == repr(kept) == repr(Data(np.array(1.0)))


def test_a_claim_without_a_figure_has_none(claims, tmp_path):
    claims.change("P0.one", draw=None)
    assert verify(("P0.one",), tmp_path, say=silently)["P0.one"]["figure"] == ""
    assert not (tmp_path / "full" / "P0.one" / FIGURE).exists()
    verify(("P0.one",), tmp_path, say=silently)
    assert claims.judged["P0.one"] == 1


def test_an_interrupted_run_goes_on_where_it_was(claims, tmp_path):
    whole = claims.of("P0.two")

    def stop(budget) -> Data:
        raise KeyboardInterrupt

    claims.change("P0.two", measure=stop)
    with pytest.raises(KeyboardInterrupt):
        verify((), tmp_path, say=silently)
    claims.change("P0.two", measure=whole.measure)
    results = verify((), tmp_path, say=silently)
    assert claims.measured == {"P0.one": 1, "P0.two": 1} and len(results) == 2


def test_a_claim_that_breaks_is_named_at_once_and_the_others_are_measured(claims, tmp_path):
    said: list[str] = []

    def broken(budget) -> Data:
        raise ZeroDivisionError("by hand")

    claims.change("P0.one", measure=broken)
    with pytest.raises(ZeroDivisionError, match="by hand"):
        verify((), tmp_path, say=said.append)
    assert claims.measured["P0.two"] == 1 and any("P0.one" in line and "by hand" in line for line in said)
    # What the other found is told and written before the error is raised.
    assert any("P0.two  FAILS" in line for line in said) and "1 fails, 1 stopped by an error" in said
    assert json.loads((tmp_path / "full" / "summary.json").read_text()).keys() == {"P0.two"}
    page = (tmp_path / "full" / "report.html").read_text()
    assert '<h2 id="P0.two">' in page and "P0.one" not in page


def test_what_breaks_in_judging_keeps_what_was_measured(claims, tmp_path):
    whole = claims.of("P0.one")
    claims.change("P0.one", judge=lambda found: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        verify(("P0.one",), tmp_path, say=silently)
    claims.change("P0.one", judge=whole.judge)
    assert verify(("P0.one",), tmp_path, say=silently)["P0.one"]["verdict"] == "holds"
    assert claims.measured["P0.one"] == 1


def test_of_two_claims_that_break_the_first_s_error_is_raised(claims, tmp_path):
    for i, name in enumerate(claims.measured):

        def broken(budget, i=i) -> Data:
            raise ZeroDivisionError(f"number {i}")

        claims.change(name, measure=broken)
    with pytest.raises(ZeroDivisionError, match="number 0"):
        verify((), tmp_path, say=silently)
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


def test_parts_of_a_measurement_by_other_code_are_not_used(claims, tmp_path):
    whole, seen = claims.of("P0.one"), []

    def measure(budget) -> Data:
        seen.append(sorted(path.name for path in budget.folder.iterdir()))
        budget.keep("part", Data, lambda: Data(np.array(len(seen))))
        if len(seen) < 4:
            raise KeyboardInterrupt
        return whole.measure(budget)

    claims.change("P0.one", measure=measure)
    for code in ("old", "old", "new"):
        claims.codes["measured"] = code
        with pytest.raises(KeyboardInterrupt):
            verify(("P0.one",), tmp_path, say=silently)
    verify(("P0.one",), tmp_path, say=silently)
    assert seen == [[STARTED], ["part.npz", STARTED], [STARTED], ["part.npz", STARTED]]
    assert int(read_record(tmp_path / "full" / "P0.one" / "part.npz", Data).value) == 3


def test_threads_of_one_claim_may_speak_at_once(claims, tmp_path):
    whole = claims.of("P0.one")

    def measure(budget) -> Data:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(budget.say, ["half"] * 400))
        return whole.measure(budget)

    claims.change("P0.one", measure=measure)
    said: list[str] = []
    assert verify(("P0.one",), tmp_path, say=said.append)["P0.one"]["verdict"] == "holds"
    assert said.count("P0.one            half") == 401


def test_code_that_changes_meanwhile_does_not_pass_for_what_was_measured(claims, tmp_path):
    whole = claims.of("P0.one")

    def measure(budget) -> Data:
        claims.codes["measured"] = "new"
        return whole.measure(budget)

    claims.change("P0.one", measure=measure)
    verify(("P0.one",), tmp_path, say=silently)
    assert json.loads((tmp_path / "full" / "P0.one" / RESULT).read_text())["measured"] == "m"
    verify(("P0.one",), tmp_path, say=silently)
    assert claims.measured["P0.one"] == 2


def test_the_time_of_attempts_that_were_cut_short_is_counted(claims, tmp_path, monkeypatch):
    whole, clock = claims.of("P0.one"), [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])

    def measure(budget) -> Data:
        clock[0] += 100.0
        measured = whole.measure(budget)  # says a line
        clock[0] += 1.0
        if claims.measured["P0.one"] == 1:
            raise KeyboardInterrupt
        return measured

    claims.change("P0.one", measure=measure)
    with pytest.raises(KeyboardInterrupt):
        verify(("P0.one",), tmp_path, say=silently)
    assert verify(("P0.one",), tmp_path, say=silently)["P0.one"]["seconds"] == 201.0


@pytest.mark.parametrize("damage", ['{"measured": "m"}', "{", "[1]", "", "edited", "no figure", "half a figure"])
def test_a_damaged_result_is_left_out_and_made_again_from_what_was_kept(damage, claims, tmp_path):
    whole = verify(("P0.one",), tmp_path, say=silently)
    file = tmp_path / "full" / "P0.one" / RESULT
    figure = file.parent / FIGURE
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
    assert claims.judged["P0.one"] == claims.drawn["P0.one"] == 2 and claims.measured["P0.one"] == 1
    assert again == whole
    (tmp_path / "full" / "P0.one" / STARTED).write_text(damage)
    assert verify(("P0.one",), tmp_path, say=said.append) == again


@pytest.mark.parametrize("damage", ["half", "empty", "a text", "of something else", "gone", "not known of what code"])
def test_damaged_data_are_measured_again_with_a_line(damage, claims, tmp_path):
    whole = verify(("P0.one",), tmp_path, say=silently)
    folder = tmp_path / "full" / "P0.one"
    data, said = folder / f"{DATA}.npz", []
    (folder / RESULT).unlink()
    if damage == "gone":
        data.unlink()
    elif damage == "not known of what code":
        (folder / STARTED).unlink()
    elif damage == "of something else":
        with open(data, "wb") as file:
            np.savez(file, value=np.zeros(3))
    else:
        content = data.read_bytes()
        data.write_bytes({"half": content[: len(content) // 2], "empty": b"", "a text": b"no data"}[damage])
    again = verify(("P0.one",), tmp_path, say=said.append)
    assert claims.measured["P0.one"] == 2 and again["P0.one"]["numbers"] == whole["P0.one"]["numbers"]
    if damage not in ("gone", "not known of what code"):
        assert len([line for line in said if "P0.one" in line and "damaged or of something else" in line]) == 1


def test_two_claims_are_measured_at_a_time(claims, tmp_path):
    both = threading.Barrier(2, timeout=60)

    def measure(budget) -> Data:
        both.wait()  # an error where the other does not come
        return Data(np.array(1.0))

    for name in claims.measured:
        claims.change(name, measure=measure)
    assert len(verify((), tmp_path, say=silently)) == 2


# Which claims ---------------------------------------------------------------------------------------------------------


def test_patterns_choose_and_what_gets_no_verdict_is_asked_for_by_name_or_with_all(claims):
    claims.change("P0.two", margins={})
    CLAIMS.append("P9.lost")
    loaded, broken = load_each(CLAIMS)
    cases = {
        (): ["P0.one", "P9.lost"],
        ("*",): ["P0.one", "P9.lost"],
        ("P0.*",): ["P0.one"],
        ("P0.t*", "P0.o*"): None,
        ("P0.two",): ["P0.two"],
        ("P0.two", "P0.o*"): ["P0.one", "P0.two"],
        ("P?.[ol]*",): ["P0.one", "P9.lost"],
        ("p0.*",): None,
        ("P0.tw",): None,
    }
    for patterns, names in cases.items():
        if names is None:
            with pytest.raises(OptionError):
                chosen(patterns, False, loaded, broken)
        else:
            assert chosen(patterns, False, loaded, broken) == names, patterns
    assert chosen((), True, loaded, broken) == ["P0.one", "P0.two", "P9.lost"]
    assert chosen(("P0.*",), True, loaded, broken) == ["P0.one", "P0.two"]
    with pytest.raises(
        OptionError, match=r"'P0.t\*' matches no claim but those without a verdict, P0.two; --all takes them"
    ):
        chosen(("P0.t*",), False, loaded, broken)


def test_an_assumption_without_margins_gets_a_verdict(claims):
    claims.change("P0.two", margins={}, refuting="y")
    assert chosen((), False, load_each(CLAIMS)[0]) == ["P0.one", "P0.two"]


def test_every_file_with_a_claim_is_in_the_list():
    home = Path(runner.__file__).parent
    files = [path for path in home.glob("p*/*.py") if "\nCLAIM = " in path.read_text()]
    assert {f"{path.parent.name.upper()}.{path.stem}" for path in files} == {*CLAIMS} and len(CLAIMS) == len({*CLAIMS})


def test_no_claim_imports_another():
    homes = {f"experiments.claims.{name.lower()}" for name in CLAIMS}
    for name in homes:
        source = Path(importlib.util.find_spec(name).origin).read_text()
        assert not imports(ast.parse(source)) & homes, name


def test_a_quick_run_is_said_to_take_at_most_five_minutes_a_paper_on_two_cores():
    for paper in {name.partition(".")[0] for name in CLAIMS}:
        judged = [load(name) for name in CLAIMS if name.startswith(f"{paper}.")]
        assert sum(x.minutes(quick=True) for x in judged if x.is_judged) / 2 <= 5


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_says_what_it_costs_and_can_be_kept(name):
    claim, measured, reported = load(name)
    assert len(measured) == len(reported) == 12 and measured != reported
    assert 0 < claim.minutes[0] <= claim.minutes[1] <= 60
    assert all(margin.low < margin.high for margin in claim.margins.values())
    kind = runner.get_type_hints(claim.measure)["return"]
    assert issubclass(kind, tuple) and kind._fields
