"""What the READMEs say is so: their Python runs, their ways to add things work, their links lead somewhere, names exist."""

import importlib
import json
import re
import runpy
import sys

import jax
import numpy as np
import pytest
import xarray as xr
from made_runs import dataset
from readmes import ROOT, TEXTS, block, blocks, prose

import experiments
from experiments.__main__ import COMMANDS, main
from experiments.claims import CLAIMS, p1, runner
from experiments.runs.driver import EXTENDABLE, PLACEMENT
from experiments.runs.folder import run_name
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.config import as_dict
from experiments.settings.worlds import WORLDS

FRONT = TEXTS[ROOT / "README.md"]
EACH = pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
TINY = {
    "width": 2,
    "num_policy_steps": 1,
    "batch_size": 4,
    "rollout_length": 4,
    "segment_length": 2,
    "num_targets": 1,
    "num_transitions": 4,
    "num_chains": 4,
    "reward_hidden": (4,),
    "policy_hidden": (4,),
    "critic_hidden": (4,),
}
TINY_ARGUMENTS = [
    word
    for name, value in TINY.items()
    for word in ("--" + name.replace("_", "-"), str(value[0] if isinstance(value, tuple) else value))
]


# Python ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Runs are small, whatever a snippet asks for, and in a folder of their own; the function adds options to that."""
    monkeypatch.chdir(tmp_path)
    real = experiments.configure

    def use(**sizes):
        def configure(*names, **options):
            return real(*names, **(options | TINY | {"seeds": 2, "steps": 2} | sizes))

        monkeypatch.setattr(experiments, "configure", configure, raising=False)

    return use


def run_block(word: str) -> dict:
    """The names that the Python block with that word leaves."""
    names: dict = {}
    exec(block(word), names)
    return names


def test_ten_lines_of_python_train_and_load(small, capsys):
    small(policy="table", reward="table", critic_model="table")
    names = run_block("load_params")
    assert len(block("load_params").strip().splitlines()) <= 10
    assert dict(names["run"].sizes) == {"hyper": 2, "seed": 2, "step": 2}
    assert jax.tree.leaves(names["policy_params"])
    assert "true return" in capsys.readouterr().out


def test_the_snippet_that_reads_a_run_writes_it_for_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "load_run", lambda folder: dataset(sweep={"sigma": [0.1, 1.0]}), raising=False)
    monkeypatch.chdir(tmp_path)
    names = run_block("to_netcdf")
    with xr.open_dataset("run.nc") as read:
        xr.testing.assert_identical(read.load(), names["run"])
    said = capsys.readouterr().out
    assert "true_return" in said and "sigma" in said


def test_the_snippet_of_a_policy_in_gymnasium_runs(small, capsys):
    pytest.importorskip("gymnasium")
    sizes = {"chunk": "1", "num_batches": 2, "num_reward_steps": 2, "evaluation_rollouts": 2, "num_pairs": 2}
    small(steps=1, **sizes)
    names = run_block("load_policy")
    assert len(block("load_policy").strip().splitlines()) <= 12
    assert 5 < names["steps"] <= 500 and names["action"] in (0, 1)
    assert capsys.readouterr().out.startswith(f"{names['steps']} [")


def test_the_snippet_of_an_exact_instance_finds_the_proxy_above_by_about_sigma(capsys):
    run_block("instance.value")
    assert 0 < float(capsys.readouterr().out) < 0.01


def test_the_snippet_of_an_algorithm_as_a_value_runs():
    text = block("def final_reward").replace("SampleSizes()", "SampleSizes(8, rollout_length=5, segment_length=2)")
    names: dict = {}
    exec(text.replace("num_steps=20", "num_steps=2"), names)
    assert names["rewards"].shape == (8, 5, 3)
    assert np.all(np.isfinite(names["rewards"]))


# Ways to add something: one file each ---------------------------------------------------------------------------------


def test_the_world_of_the_readme_is_one_file_and_trains(tmp_path, monkeypatch):
    monkeypatch.setitem(WORLDS, "corridor", None)  # so that it is taken away again
    file = tmp_path / "corridor.py"
    file.write_text(block("CorridorOptions"))
    runpy.run_path(str(file), run_name="corridor")
    out = tmp_path / "run"
    tables = ["--policy", "table", "--reward", "table", "--critic-model", "table"]
    sizes = ["--seeds", "2", "--steps", "2", "--length", "4", *tables, *TINY_ARGUMENTS]
    assert main(["train", "--world", "corridor", "--out", str(out), *sizes]) == 0
    assert experiments.load_run(out).sizes["step"] == 2
    assert np.load(out / "tables.npz")["policy"].shape == (1, 2, 4, 2)


def test_the_algorithm_of_the_readme_is_one_file_and_learns_at_each_point_of_its_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ALGORITHMS, "duels", None)
    file = tmp_path / "duels.py"
    file.write_text(block("class DuelsConfig"))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("duels")
    sys.modules.pop("duels")
    out = tmp_path / "run"
    words = ["train", "--world", "bandit", "--algorithm", "duels", "--duel-step-size", "0.5", "1.0"]
    assert main([*words, "--policy", "table", "--seeds", "4", "--steps", "30", "--out", str(out)]) == 0
    gained = experiments.load_run(out).true_return.isel(step=[0, -1]).mean("seed").diff("step")
    assert gained.shape == (2, 1) and np.all(gained > 0)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*words[:5], "--help"])
    shown = capsys.readouterr().out
    assert "--num-duels" in shown and "Pairs of one-step segments" in shown and "--critic" not in shown


def test_the_claim_of_the_readme_is_one_file_and_holds(tmp_path, monkeypatch):
    (tmp_path / "coin.py").write_text(block("P1.coin"))
    monkeypatch.setattr(p1, "__path__", [*p1.__path__, str(tmp_path)])
    monkeypatch.setattr(runner, "digest", lambda *places: "of the code")  # which is looked for in the source tree
    CLAIMS.append("P1.coin")
    try:
        result = runner.verify(("P1.coin",), tmp_path / "out", quick=True, say=lambda line: None)["P1.coin"]
    finally:
        CLAIMS.remove("P1.coin")
        sys.modules.pop("experiments.claims.p1.coin")
    assert result["verdict"] == "holds" and result["numbers"]["share"]["margin"] == [0.45, 0.55]
    assert json.loads((tmp_path / "out" / "quick" / "summary.json").read_text())["P1.coin"] == result


def test_every_python_block_is_run_by_a_test():
    words = ("load_params", "to_netcdf", "load_policy", "instance.value", "def final_reward")
    words += ("CorridorOptions", "class DuelsConfig", "P1.coin")
    assert sorted(blocks("python")) == sorted(map(block, words))


# Text -----------------------------------------------------------------------------------------------------------------


def test_the_front_page_fits_on_two_screens():
    assert len(FRONT.encode()) <= 8192


@EACH
def test_no_cell_of_a_table_is_long(path):
    lines = [line for line in prose(TEXTS[path]).splitlines() if line.startswith("|")]
    assert max((len(cell.strip()) for line in lines for cell in re.split(r"(?<!\\)\|", line)), default=0) <= 200


@EACH
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(TEXTS[path])):
        file, _, anchor = target.partition("#")
        assert target.startswith("https://") or (path.parent / file).exists(), target
        if anchor and not target.startswith("https://"):
            headings = re.findall(r"^#+ (.*)$", (path.parent / file).read_text() if file else TEXTS[path], re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", x.lower()).replace(" ", "-") for x in headings], target


def test_pictures_are_small():
    pictures = [path.parent / x for path, text in TEXTS.items() for x in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)]
    assert pictures and all(x.stat().st_size < 60_000 for x in pictures)


def exists(name: str) -> bool:
    """Whether a dotted name below a package of this project leads to something."""
    module, _, rest = name, "", ""
    while module:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            continue
        for part in filter(None, rest.split(".")):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@EACH
def test_every_module_and_every_file_that_is_named_exists(path):
    homes = (path.parent, ROOT)
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for name in re.findall(r"`([^`\s]+)`", prose(TEXTS[path])):
        if re.fullmatch(r"[\w/]+(\.py|/)", name):
            assert any((home / name).exists() for home in homes), name
        elif re.fullmatch(r"(bilevel|envs|experiments)(\.\w+)+", name):
            assert exists(name), name
        elif re.fullmatch(r"(types|models|exact|gradients|algorithms)(\.\w+)+", name):
            assert exists(f"{package}.{name}"), name


@pytest.mark.parametrize("folder", ["bilevel", "envs", "experiments"])
def test_every_module_is_named_in_the_readme_of_its_folder(folder):
    words = {*re.findall(r"\w+", TEXTS[ROOT / folder / "README.md"])}
    claims = ROOT / "experiments" / "claims" / "p1"
    modules = {path.stem for path in (ROOT / folder).rglob("*.py") if path.parent != claims} - {"__init__"}
    assert modules <= words


@EACH
def test_every_claim_that_is_named_is_one(path):
    assert {*re.findall(r"\bP1\.[a-z_]+\b", prose(TEXTS[path]))} <= {*CLAIMS}


def test_every_command_is_named_and_every_command_that_is_named_is_one():
    named = re.findall(r"(?:^|[ `/])bilevel ([a-z]+)\b", "\n".join(TEXTS.values()), re.MULTILINE)
    assert {x for x in named if x in COMMANDS or x in ("study", "run")} == {*COMMANDS}


def test_the_run_that_is_named_is_that_of_the_first_command():
    config = as_dict(experiments.configure())
    name = run_name("gridworld", "bilevel", config, EXTENDABLE + PLACEMENT)
    assert f"bilevel report runs/{name}" in TEXTS[ROOT / "experiments" / "README.md"]


def test_the_test_command_is_where_the_fresh_clone_looks_for_it():
    assert len(re.findall(r"^python3 -m venv .*pytest", FRONT, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_is_in_the_table_of_worlds(name):
    assert f"\n| {name} |" in TEXTS[ROOT / "envs" / "README.md"]
