"""The page of a run: its headline, and that it is complete in itself."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from made_runs import BASELINES, dataset, grid_tables, healthy, labels, one_sign, only

from experiments.report.figures import draw
from experiments.report.page import headline, write_report
from experiments.report.summary import format_table, summarise


def test_the_headline_tells_from_where_to_where_and_between_what():
    values = np.linspace(1, 6, 30)
    text = headline(summarise(dataset(true_return=values)), BASELINES)
    assert text.startswith("True return from 1 after the first step to 6 [6, 6] in 30 outer steps")
    assert "optimal policy 7.1, reference policy 0.9. 4 of 4 seeds alive" in text


def test_the_headline_counts_the_seeds_of_the_mean_and_those_that_never_had_a_finite_value():
    dead = np.isin(np.arange(8), (2, 5))[:, None]
    run = dataset(num_seeds=8, true_return=np.where(dead, np.nan, 3.0), status=2 * dead)
    text = headline(summarise(run), {})
    assert "(interquartile mean and 95 % interval over 6 seeds; 2 never had a finite value)" in text
    assert "6 of 8 seeds alive" in text
    assert "2 of 8 seeds never had a finite value and count in no mean." in format_table(summarise(run))


def test_a_run_of_one_seed_and_one_step_has_no_interval_and_no_plural():
    text = headline(summarise(dataset(num_seeds=1, num_steps=1, true_return=3.0, kl_to_reference=1.0)), {})
    assert text.startswith(
        "True return from 3 after the first step to 3 in 1 outer step (interquartile mean over 1 seed)."
    )
    assert "1 of 1 seed alive" in text and "in none of 1 seed." in text
    dead = dataset(num_seeds=1, num_steps=1, status=2)
    assert one_sign(dead).startswith("Diverged: 1 of 1 seed (seed 0).")
    assert "of 1 outer step, 95 %" in format_table(summarise(dead))


def test_an_unfinished_run_says_so_in_its_headline_and_its_table():
    run = dataset(num_steps=30)
    for steps, said in ((200_000, True), (30, False)):
        summary = summarise(run.assign_attrs(config=json.dumps({"steps": steps})))
        for text in (headline(summary, {}), format_table(summary)):
            assert ("Unfinished: 30 of 200,000 outer steps are done." in text) == said


def test_the_headline_of_a_world_with_a_score_is_in_its_unit_and_range():
    run = dataset(true_score=np.linspace(20, 173, 30))
    assert headline(summarise(run), {}).startswith("True score from 20 after the first step to 173 [173, 173] in 30")
    run.true_score.attrs.update(long_name="steps survived", units="steps", valid_min=0, valid_max=500)
    text = headline(summarise(run), {})
    assert text.startswith("Steps survived from 20 after the first step to 173 [173, 173] of 500 in 30 outer steps")
    assert "steps for steps survived" in format_table(summarise(run))
    figure = draw(run)["outcomes"]
    assert (figure.axes[0].get_title(), figure.axes[0].get_ylabel()) == ("steps survived", "steps")
    assert labels(figure)[-1] == "most possible: 500"


def test_the_headline_of_a_sweep_says_that_it_is_the_best_point():
    values = np.array([2.0, 5.0, 3.0])[:, None, None]
    text = headline(summarise(dataset(sweep={"sigma": [1.0, 2.0, 3.0]}, true_return=values)), {})
    assert text.startswith("At sigma = 2, the best of 3 points by this number: true return from 5 after the first")


def test_a_report_is_one_page_complete_in_itself(tmp_path):
    config = {"world": "gridworld", "sigma": [0.1, 1.0], "note": "<script>alert(1)</script>"}
    manifest = {"config": config, "versions": {"jax": "0.10.2"}, "layout": {"num_devices": 2}}
    told = {"notes": ["resumed at step 20", "bits may differ & so on"], "command": "run --x"}
    for name, value in {"config": config, "manifest": manifest, "notes": told, "baselines": BASELINES}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    np.savez(tmp_path / "tables.npz", **grid_tables())
    run = dataset()
    path = write_report(tmp_path, run, summarise(run, {"run_seconds": 2.5}))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert page.count("<svg ") == 5 == len(list((tmp_path / "figures").glob("*.png")))
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page) and "url(http" not in page
    for text in (
        "bits may differ &amp; so on",
        "resumed at step 20",
        "versions.jax",
        "run --x",
        "0.1, 1",
        "12,000",
        "run 2.5 s",
    ):
        assert text in page


@pytest.mark.parametrize("on_a_map", [True, False])
def test_a_run_that_learned_no_reward_gets_a_report_with_its_policy_if_there_is_a_map(tmp_path, on_a_map):
    kept = ("policy", "true_reward", "grid")[: 3 if on_a_map else 2]
    tables = {name: x for name, x in grid_tables().items() if name in kept}
    np.savez(tmp_path / "tables.npz", **tables)
    run = dataset()
    assert "Signs of failure" in write_report(tmp_path, run, summarise(run)).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "rewards.png").exists() == on_a_map
    if on_a_map:
        titles = [axes.get_title() for axes in draw(run, tables=tables)["rewards"].axes]
        assert titles[:-1] == ["true reward", "learned policy, over the true reward"]  # the last is the colour scale


def test_a_folder_with_nothing_else_in_it_gets_a_report(tmp_path):
    run = dataset(num_seeds=1, num_steps=2)[["critic_loss"]]
    assert "not recorded" in write_report(tmp_path, run, summarise(run)).read_text(encoding="utf-8")


def test_reading_a_run_needs_no_accelerator_library():
    code = "import sys, experiments.report.page; sys.exit('jax' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_and_the_headline_count_the_seeds_with_signs():
    run = dataset(true_return=only(1, np.linspace(2, 1, 30), healthy("true_return")))
    table, text = format_table(summarise(run)), headline(summarise(run), {})
    row = next(line for line in table.splitlines() if line.startswith("true return"))
    assert row.split()[-2:] == ["4/4", "1/4"] and "Sign of failure. Ended below where it began" in table
    assert "Signs of failure: in 1 of 4 seeds." in text
    assert "signs" not in format_table(summarise(dataset()))
