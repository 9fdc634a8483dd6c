"""The README's code runs: its Python, its way to add a world, and an algorithm added in the same way."""

import pathlib
import re
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments
from bilevel.types import Algorithm, Learned
from experiments.__main__ import main
from experiments.settings.algorithms import ALGORITHMS, StepOptions
from experiments.settings.worlds import WORLDS

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
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


def block(word: str) -> str:
    """The one Python block that holds a word."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_the_snippet_without_the_command_line_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    real = experiments.configure

    def small(**options):
        return real(**(options | TINY | {"seeds": 2, "steps": 2}))

    monkeypatch.setattr(experiments, "configure", small, raising=False)
    names: dict = {}
    exec(block("load_params"), names)
    assert len(block("load_params").strip().splitlines()) <= 15
    assert dict(names["run"].sizes) == {"hyper": 2, "seed": 2, "step": 2}
    assert jax.tree.leaves(names["policy_params"])
    assert "true return" in capsys.readouterr().out


def test_the_snippet_of_a_policy_in_gymnasium_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    real = experiments.configure

    def small(world, algorithm, **options):
        sizes = {"steps": 1, "chunk": "1", "num_batches": 2, "num_reward_steps": 2, "evaluation_rollouts": 2}
        return real(world, algorithm, **(TINY | sizes | {"num_pairs": 2, "seeds": 2}))

    monkeypatch.setattr(experiments, "configure", small, raising=False)
    names: dict = {}
    exec(block("load_policy"), names)
    assert len(block("load_policy").strip().splitlines()) <= 12
    assert 5 < names["steps"] <= 500 and names["action"] in (0, 1)
    assert capsys.readouterr().out.startswith(f"{names['steps']} [")


def test_the_snippet_of_primitives_runs():
    names: dict = {}
    text = (
        block("def final_reward")
        .replace("SampleSizes()", "SampleSizes(8, 5, 2)")
        .replace("num_steps=20", "num_steps=2")
    )
    exec(text, names)
    assert names["rewards"].shape == (8, 5, 3)
    assert np.all(np.isfinite(names["rewards"]))


def test_the_world_of_the_readme_is_one_file_and_trains(tmp_path, monkeypatch):
    file = tmp_path / "corridor.py"
    file.write_text(block("CorridorOptions"))
    monkeypatch.setitem(WORLDS, "corridor", None)  # so that it is taken away again
    runpy.run_path(str(file), run_name="corridor")
    out = tmp_path / "run"
    sizes = ["--seeds", "2", "--steps", "2", "--policy", "table", "--length", "4", *TINY_ARGUMENTS]
    assert main(["train", "--world", "corridor", "--out", str(out), *sizes]) == 0
    assert experiments.load_run(out).sizes["step"] == 2
    assert np.load(out / "tables.npz")["policy"].shape == (1, 2, 4, 2)


def test_an_algorithm_is_added_in_one_place_and_trains(tmp_path, monkeypatch):
    class Still(StepOptions):
        """An algorithm that never moves."""

        def build(self, problem, gradients, hyper):
            """The algorithm."""

            def init(key):
                return Learned(problem.reward.init(key), problem.policy.init(key))

            def step(key, state):
                counts = dict.fromkeys(("transitions", "queries", "labels", "gradient_evaluations"), jnp.int32(0))
                return state, {"gradient_norm": jnp.zeros(()), **counts}

            return Algorithm(init, step, lambda state: state)

    monkeypatch.setitem(ALGORITHMS, "still", Still)
    out = tmp_path / "run"
    sizes = ["--seeds", "2", "--steps", "2", "--world", "garnet", *TINY_ARGUMENTS]
    assert main(["train", "--algorithm", "still", "--out", str(out), *sizes]) == 0
    run = experiments.load_run(out)
    assert np.ptp(run.true_return.values, axis=-1).max() == 0


@pytest.mark.parametrize("word", ["bilevel train --help", "bilevel study ladder", "pytest"])
def test_the_readme_names_its_commands(word):
    assert word in README
