"""A mistake gets one line: what was given, what is required, what to do; exit code 2, before anything compiles."""

import json

import jax
import numpy as np
import pytest

from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper
from experiments import configure
from experiments.__main__ import main
from experiments.runs import cohort
from experiments.settings import worlds
from experiments.settings.algorithms import ALGORITHMS, static
from experiments.settings.config import EFFECTS, as_dict, choices_wanted, from_dict, idle
from experiments.settings.job import resolve
from experiments.settings.options import ESTIMATOR, OptionError, part

CASES = {
    "unknown command": (["trian"], ["command is 'trian'", "did you mean command train?"]),
    "unknown world": (["train", "--world", "gridwrld"], ["gridwrld", "required", "--world gridworld"]),
    "misspelt algorithm": (["train", "--algoritm", "two_stage"], ["--algoritm", "did you mean --algorithm?"]),
    "unknown algorithm": (["train", "--algorithm", "bilevl"], ["bilevl", "--algorithm bilevel"]),
    "unknown option": (["train", "--sgima", "0.1"], ["has no option --sgima", "did you mean --sigma?"]),
    "option of another world": (["train", "--contexts", "3"], ["no option --contexts", "it is one of --world bandit"]),
    "option of another algorithm": (["train", "--num_batches=3"], ["--num-batches", "one of --algorithm two_stage"]),
    "a word that belongs to no option": (["train", "slowly"], ["'slowly' belongs to no option", "--steps 100"]),
    "steps that are no whole number": (
        ["train", "--steps", "1.5"],
        ["--steps is '1.5'", "required: a whole number", "the default is 100"],
    ),
    "two numbers of steps": (["train", "--steps", "5", "6"], ["--steps got 5 6", "required: one value"]),
    "no number of steps": (["train", "--steps"], ["--steps was given without a value", "required: one value"]),
    "sigmas between commas": (
        ["train", "--sigma", "0.1,0.3"],
        ["--sigma is '0.1,0.3'", "separated by spaces, as in --sigma 0.1 0.3"],
    ),
    "sigmas between commas and spaces": (["train", "--sigma", "0.1,", "0.3"], ["as in --sigma 0.1 0.3"]),
    "layers between commas": (["train", "--policy-hidden=64,64"], ["as in --policy-hidden 64 64"]),
    "a value of a switch": (["train", "--average-critic", "1"], ["--average-critic got 1", "--no-average-critic"]),
    "a value of no switch": (["train", "--no-reuse-labels", "1"], ["--no-reuse-labels got 1", "no value"]),
    "no world given": (["train", "--world"], ["--world", "without a value"]),
    "no seeds": (["train", "--seeds", "0"], ["--seeds is 0", "at least 1"]),
    "negative steps": (["train", "--steps", "-3"], ["--steps is -3", "at least 1"]),
    "no width": (["train", "--width", "0"], ["--width is 0", "at least 1"]),
    "negative seed": (["train", "--seed", "-1"], ["--seed is -1", "at least 0"]),
    "half a seed": (["train", "--seeds", "1.5"], ["1.5"]),
    "seeds that are a word": (["train", "--seeds", "many"], ["many"]),
    "chunk of nothing": (["train", "--chunk", "0"], ["--chunk is '0'", "or all"]),
    "chunk that is a word": (["train", "--chunk", "most"], ["--chunk is 'most'", "or all"]),
    "chunk of a superscript": (["train", "--chunk", "²"], ["--chunk is '²'", "or all"]),
    "more steps than can be counted": (["train", "--steps", "3000000000"], ["--steps is 3000000000", "at most"]),
    "a seed beyond 64 bits": (["train", "--seed", "99999999999999999999"], ["--seed is 9999", "at most"]),
    "an instance beyond 64 bits": (
        ["train", "--world", "garnet", "--instance", "99999999999999999999"],
        ["--instance is 9999", "at most"],
    ),
    "odd batch": (["train", "--batch-size", "7"], ["--batch-size is 7", "even number"]),
    "no inner steps": (["train", "--num-policy-steps", "0"], ["--num-policy-steps is 0"]),
    "no segment": (["train", "--segment-length", "0"], ["--segment-length is 0"]),
    "width of a layer": (["train", "--reward-hidden", "8", "0"], ["--reward-hidden is 0"]),
    "sigma of zero": (["train", "--sigma", "0"], ["--sigma is 0.0", "above 0", "0.1"]),
    "negative sigma in a sweep": (["train", "--sigma", "0.1", "-0.2"], ["--sigma is -0.2", "above 0"]),
    "sigma that is not a number": (["train", "--sigma", "nan"], ["--sigma is nan", "above 0"]),
    "sigma without bound": (["train", "--sigma", "inf"], ["--sigma is inf", "finite"]),
    "sigma that is zero in single precision": (
        ["train", "--sigma", "1e-46"],
        ["--sigma is", "above 0"],
    ),
    "sigma that single precision cannot hold": (["train", "--sigma", "1e39"], ["--sigma is", "above 0"]),
    "discount that rounds to one": (
        ["train", "--discount", "0.99999999999"],
        ["--discount is 0.99999999999, which is 1.0 in float32; required: a number in [0, 1)"],
    ),
    "sigmas that round to one number": (["train", "--sigma", "0.1", "0.10000000001"], ["--sigma repeats", "float32"]),
    "sigma that float32 does not have": (
        ["train", "--sigma", "1e-300"],
        ["--sigma is 1e-300, which is 0.0 in float32; required: a finite number above 0", "--precision float64"],
    ),
    "sigma beyond floats": (
        ["train", "--sigma", "0.1", "1e400"],
        ["--sigma is 1e400, which as a floating-point number is inf; required: a finite number above 0"],
    ),
    "sigma below floats": (["train", "--sigma=1e-400"], ["--sigma is 1e-400, which as a floating-point number is 0.0"]),
    "an error rate below floats": (["train", "--error-rate", "1e-400"], ["--error-rate is 1e-400", "in [0, 0.5]"]),
    "a tolerance without end": (["train", "--gradient-tolerance", "inf"], ["required: a finite number, at least 0"]),
    "a cell of none": (["train", "--world", "cartpole", "--cells", "0", "3", "8", "6"], ["the default is none"]),
    "a seed that would wrap": (["train", "--seed", "4294967296"], ["--seed is 4294967296", "at most 4294967295"]),
    "steps without end": (["train", "--steps", "1" + "0" * 22], ["--steps is 1", "at most"]),
    "seeds without end": (["train", "--seeds", "1000000000000"], ["--seeds is", "at most"]),
    "a layer without end": (["train", "--reward-hidden", "1000000000000"], ["--reward-hidden is", "65536"]),
    "sigma twice": (["train", "--sigma", "0.1", "0.1"], ["--sigma repeats", "distinct"]),
    "no sigma": (["train", "--sigma"], ["--sigma"]),
    "discount of one": (["train", "--discount", "1.0"], ["--discount is 1.0", "[0, 1)"]),
    "discount of zero on a grid": (["train", "--discount", "0"], ["--discount is 0.0", "bandits alone"]),
    "discount above one": (["train", "--discount", "1.5"], ["--discount is 1.5"]),
    "discount of a bandit": (["train", "--world", "bandit", "--discount", "0.9"], ["--discount is 0.9", "needs 0.0"]),
    "negative KL": (["train", "--kl-weight", "-1"], ["--kl-weight is -1.0", "at least 0"]),
    "no KL for exact gradients": (["train", "--kl-weight", "0", "--gradients", "exact"], ["--kl-weight", "above 0"]),
    "unknown hypergradient": (["train", "--hypergradient", "exact"], ["exact", "closed_form"]),
    "implicit hypergradient of samples": (
        ["train", "--hypergradient", "implicit"],
        ["--hypergradient is implicit", "closed_form", "--gradients exact"],
    ),
    "unrolled hypergradient of samples": (
        ["train", "--hypergradient", "unrolled", "--gradients", "sampled"],
        ["--hypergradient is unrolled", "closed_form", "--gradients exact"],
    ),
    "no KL for the closed form": (
        ["train", "--hypergradient", "closed_form", "--kl-weight", "0.5", "0"],
        ["--kl-weight is 0 with --hypergradient closed_form", "above 0"],
    ),
    "hypergradient of another algorithm": (
        ["train", "--algorithm", "alternating", "--hypergradient", "naive"],
        ["--hypergradient"],
    ),
    "a step size of no critic": (
        ["train", "--critic", "monte_carlo", "--critic-step-size", "0.1", "3"],
        ["--critic-step-size has no effect with --critic monte_carlo; it is one of --critic td"],
    ),
    "a search without samples": (
        ["tune", "--budget", "9999", "--gradients", "exact"],
        ["--gradients is exact", "--gradients sampled"],
    ),
    "error rate above a half": (["train", "--error-rate", "0.7"], ["--error-rate is 0.7", "[0, 0.5]"]),
    "myopia of zero": (["train", "--myopia", "0"], ["--myopia is 0.0"]),
    "no rationality": (["train", "--rationality", "0"], ["--rationality is 0.0"]),
    "unknown map": (["train", "--map", "maze"], ["--map is 'maze'", "four_rooms"]),
    "slip of one": (["train", "--slip", "1"], ["--slip is 1.0"]),
    "table on CartPole": (["train", "--world", "cartpole", "--policy", "table"], ["--policy is table", "finite world"]),
    "exact critic on the regulator": (
        ["train", "--world", "lqr", "--critic", "exact"],
        ["--critic is exact", "finite"],
    ),
    "more successors than states": (
        ["train", "--world", "garnet", "--states", "3", "--successors", "5"],
        ["--successors is 5", "at most --states, 3"],
    ),
    "more states than memory": (
        ["train", "--world", "garnet", "--states", "100000"],
        ["--states is 100000", "268435456 transition probabilities", "ask for fewer"],
    ),
    "more contexts than memory": (["train", "--world", "bandit", "--contexts", "50000"], ["--contexts is 50000"]),
    "part of a chain": (["train", "--num-transitions", "100"], ["--num-transitions is 100", "multiple", "32"]),
    "unknown estimator": (
        ["train", "--estimator", "best"],
        ["--estimator is 'best'", "required: one of weighted, coupled, independent"],
    ),
    "a segment longer than an episode": (
        ["train", "--world", "cartpole", "--segment-length", "501"],
        ["--segment-length is 501", "at most 500", "episode of cartpole"],
    ),
    "unknown optimizer": (["train", "--policy-optimizer", "adamm"], ["adamm", "did you mean --policy-optimizer adam?"]),
    "optimizer's argument": (["train", "--policy-optimizer", "sgd:speed=3"], ["sgd:speed=3", "sgd:momentum=0.9"]),
    "optimizer that is a line search": (["train", "--reward-optimizer", "lbfgs"], ["lbfgs", "required: one of"]),
    "optimizer with a key": (["train", "--reward-optimizer", "noisy_sgd"], ["noisy_sgd", "required: one of"]),
    "optimizer's argument that is not finite": (["train", "--policy-optimizer", "adam:eps=nan"], ["finite"]),
    "optimizer with a share of all": (["train", "--policy-optimizer", "adam:b1=2"], ["b1 must be in [0, 1)"]),
    "optimizer with a negative share": (["train", "--policy-optimizer", "adam:b1=-1"], ["b1 must be in [0, 1)"]),
    "optimizer with a negative number": (["train", "--policy-optimizer", "adam:eps=-1"], ["eps must be finite and at"]),
    "optimizer without its arguments": (["train", "--policy-optimizer", "sgd:"], ["'sgd:'", "no argument=number"]),
    "optimizer's argument without a value": (
        ["train", "--reward-optimizer", "sgd:momentum"],
        ["'sgd:momentum'", "('momentum' is no argument=number)"],
    ),
    "optimizer's argument twice": (
        ["train", "--policy-optimizer", "sgd:momentum=0.9,momentum=0.8"],
        ["(momentum is given twice)"],
    ),
    "optimizer's argument without a number": (["train", "--policy-optimizer", "adam:b1"], ["adam:b1", "sgd:momentum"]),
    "too many segments": (
        ["train", "--gradients", "exact"],
        ["--segment-length is 10 with --gradients exact", "100^10"],
    ),
    "segments that would fit": (
        ["train", "--gradients", "exact", "--world", "garnet", "--states", "4", "--actions", "2"],
        ["(S·A)^H segments, here 8^10, and at most 4096", "--segment-length 4 or less, or --gradients sampled"],
    ),
    "no segment that would fit": (
        ["train", "--gradients", "exact", "--world", "garnet", "--states", "2049", "--actions", "2"],
        ["required: a smaller world, or --gradients sampled"],
    ),
    "more devices than there are": (["train", "--devices", "999"], ["--devices is 999", "at most"]),
    "gymnax has no such environment": (
        ["train", "--world", "gymnax", "--environment", "Pendulum-v9"],
        ["Pendulum-v9"],
    ),
    "an MDP without a file": (["train", "--world", "file"], ["--mdp was not given", "numpy.savez"]),
    "an MDP in Python": (["train", "--world", "file", "--mdp", "x.py"], ["--mdp is 'x.py'", ".npz", "numpy.savez("]),
    "a search without a budget": (
        ["tune"],
        ["--budget was not given", "environment transitions", "bilevel tune --budget 10000000"],
    ),
    "a search without end": (["tune", "--budget", "1" + "0" * 30], ["--budget is '1000", f"from 1 to {2**63 - 1}"]),
    "a search for nothing at all": (
        ["tune", "--budget", "0"],
        ["--budget is '0'; required: a whole number from 1", "the default is none"],
    ),
    "a search of half a transition": (["tune", "--budget", "1e-1"], ["--budget is '1e-1'; required: a whole number"]),
    "a search by several": (["tune", "--budget", "9999", "--distributed"], ["tune got --distributed", "one process"]),
    "a search that is stopped": (["tune", "--budget", "9999", "--stopped-code", "0"], ["tune got --stopped-code"]),
    "a report of no name": (["report", ""], ["report got ''", "one run folder"]),
    "a version of something": (["--version", "foo"], ["--version got foo"]),
    "a study of no name": (["study"], ["a study is a claim", "bilevel verify P1.NAME", "--list"]),
    "a study": (["study", "ladder", "--out", "x"], ["required: bilevel verify P1.ladder"]),
    "a study whose claim has another name": (["study", "complexity"], ["required: bilevel verify P1.rate"]),
    "a misspelt option of verify": (["verify", "--quik"], ["verify got --quik", "did you mean --quick?"]),
    "too many devices": (["plan", "--target-devices", "1" + "0" * 20], ["at least 1 and at most 1048576"]),
    "more digits than a number has": (["plan", "--target-devices", "9" * 5000], ["--target-devices is"]),
    "a report of an option": (["report", "--fast"], ["got --fast", "one run folder"]),
    "a reference that is no file": (["train", "--reference", "expert"], ["--reference is 'expert'", ".npz"]),
    "a reference that is missing": (["train", "--reference", "expert.npz"], ["expert.npz cannot be read"]),
    "a report of nothing": (["report"], ["one run folder"]),
    "a report of two": (["report", "a", "b"], ["one run folder"]),
    "a report of what is no run": (["report", "nowhere"], ["nowhere is not a run"]),
}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a mistaken command in an empty folder; returns its one line, after checking that nothing was done."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"JAX_NUM_CPU_DEVICES": "1", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}.items():
        monkeypatch.setenv(name, value)  # so that the command leaves the settings of this process as they are

    def banned(*arguments):
        raise AssertionError("this should have been refused before anything compiles")

    monkeypatch.setattr(cohort.Cohort, "compile", banned)

    def run(arguments):
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("bilevel: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert "----" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_on_the_command_line_gets_one_line(refused, name):
    arguments, words = CASES[name]
    message = refused(arguments)
    for word in words:
        assert word in message


FAR = {
    "command": (["xyzzy"], "train, report, tune"),
    "world": (["train", "--world", "zzzzzz"], "gridworld, garnet"),
    "algorithm": (["train", "--algorithm", "qqqqq"], "bilevel, alternating"),
    "option": (["train", "--zzzzqq", "3"], "--steps, --seeds"),
    "world a little": (["train", "--world", "zebra"], "gridworld, garnet"),
    "target": (["plan", "--target", "gpu"], "cpu, cuda, tpu"),
    "claim": (["verify", "qqqqq"], "P1.bias, P1.value"),
    "optimizer": (["train", "--policy-optimizer", "zzz"], "adabelief, adadelta"),
}


@pytest.mark.parametrize("name", FAR)
def test_a_name_like_none_gets_all_there_are_and_no_guess(refused, name):
    arguments, known = FAR[name]
    message = refused(arguments)
    assert f"required: one of {known}" in message
    assert "did you mean" not in message


def test_from_python_an_option_that_is_none_is_refused_with_the_nearest_or_where_it_belongs_or_all():
    for name, advice in {
        "sgima": "did you mean --sigma\\?",
        "cells": "it is one of --world cartpole",
        "zzzzqq": "required: one of --steps, --seeds, ",
    }.items():
        with pytest.raises(OptionError, match=f"bilevel on gridworld has no option --{name}; {advice}"):
            configure(**{name: 1})


def test_from_python_a_sweep_without_effect_is_refused_and_a_value_that_runs_share_is_not():
    with pytest.raises(OptionError, match="--critic-step-size has no effect with --critic monte_carlo; it is one of"):
        configure(critic="monte_carlo", critic_step_size=(0.1, 3.0))
    for critic in ("td", "monte_carlo"):
        config = configure(critic=critic, critic_step_size=0.1, num_targets=3)
        assert from_dict(as_dict(config)) == config


TINY = dict(states=3, actions=2, successors=2, batch_size=4, num_pairs=2, rollout_length=4, segment_length=2)
TINY |= dict(num_policy_steps=2, num_targets=1, num_transitions=8, num_chains=4, critic_hidden=(4,))
CHANGED = dict(num_targets=2, num_transitions=12, num_chains=2, average_critic=False, reset_critic=True)
CHANGED |= dict(critic_step_size=0.3, critic_radius=0.01, critic_model="table", critic_hidden=(3,), batch_size=6)
CHANGED |= dict(num_pairs=3, rollout_length=5, estimator="coupled", critic="monte_carlo")


def algorithm_of(**options):
    """A small one, its hyperparameters constants of its program."""
    job = resolve(configure("garnet", **TINY | options))
    return job.make(*job.points)[0]


def program(**options):
    """Its step, as text."""
    algorithm = algorithm_of(**options)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    return str(jax.make_jaxpr(algorithm.step)(jax.random.key(0), state))


@pytest.mark.slow
def test_each_option_that_some_choices_leave_without_effect_changes_the_program_under_the_others():
    assert set(CHANGED) == {name for names, _ in EFFECTS for name in names}
    before = program()
    assert before == program()
    assert all(program(**{name: value}) != before for name, value in CHANGED.items())


@pytest.mark.parametrize(
    "chosen", [{"critic": "monte_carlo"}, {"critic": "exact"}, {"hypergradient": "naive"}, {"gradients": "exact"}]
)
def test_options_that_a_choice_is_said_to_leave_without_effect_do_not_change_the_program(chosen):
    config = configure("garnet", **TINY | chosen)
    unused = {name: value for name, value in CHANGED.items() if choices_wanted(config, name)}
    assert unused and program(**chosen | unused) == program(**chosen)


@pytest.mark.parametrize("gradients", ["exact", "sampled"])
def test_without_line_7_sigma_moves_what_is_computed_nevertheless(gradients):
    chosen = dict(gradients=gradients, hypergradient="naive", policy="table", reward="table", critic="monte_carlo")
    assert not choices_wanted(configure("garnet", **TINY | chosen), "sigma")

    def computed(sigma):  # the policy that sigma penalises is part of the state, which must stay finite
        algorithm = algorithm_of(**chosen, sigma=sigma)
        key = jax.random.key(0)
        return jax.lax.fori_loop(0, 2, lambda _, x: algorithm.step(key, x)[0], algorithm.init(key))

    low, high = jax.jit(lambda: (computed(0.1), computed(3.0)))()
    assert any(np.any(x != y) for x, y in zip(*map(jax.tree.leaves, (low, high)), strict=True))


def test_a_single_value_without_effect_is_noted_and_harmless(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.commands.train.train", lambda *arguments: tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    notes = {
        "--critic=monte_carlo --num_targets=3": "--num-targets has no effect with --critic monte_carlo; it is one",
        "--critic exact --no-average-critic": "--average-critic has no effect with --critic exact",
        "--batch-size 8 --gradients exact --segment-length 2": "--batch-size has no effect with --gradients exact",
        "--hypergradient naive --estimator coupled": "--estimator has no effect with --hypergradient naive",
        "--num-targets 3": "",
    }
    for words, sentence in notes.items():
        assert main(["train", *words.split()]) == 0
        said = capsys.readouterr().out
        assert f"note: {sentence}" in said if sentence else "note" not in said


def test_of_an_option_that_another_algorithm_brings_it_is_not_said_that_it_has_no_effect(monkeypatch):
    options = part("OtherOptions", "An algorithm of a user.", static(AlternatingConfig, AlternatingHyper, ESTIMATOR))
    monkeypatch.setitem(ALGORITHMS, "other", ALGORITHMS["alternating"]._replace(options=options))
    for algorithm, number in {"other": 0, "bilevel": 1}.items():
        config = configure("garnet", algorithm, gradients="exact", segment_length=2)
        assert len(idle(config, ["estimator"])) == number


def arrays(**changes):
    """A finite MDP of two states and two actions as arrays, with changes."""
    transition = np.full((2, 2, 2), 0.5)
    return {"initial": np.array([0.5, 0.5]), "transition": transition, "reward": np.zeros((2, 2))} | changes


BAD_MDPS = {
    "reward of another shape": ({"reward": np.zeros((2, 3))}, ["reward has shape (2, 3)", "(2, 2)"]),
    "rows that do not sum to one": ({"transition": np.full((2, 2, 2), 0.4)}, ["transition[0, 0] sums to 0.8", "1"]),
    "NaN": ({"reward": np.array([[0, np.nan], [0, 0]])}, ["reward[0, 1] is nan", "finite"]),
    "negative probability": ({"initial": np.array([1.5, -0.5])}, ["initial", "negative probability -0.5"]),
    "flat transition": ({"transition": np.ones((2, 2))}, ["transition has shape (2, 2)", "[S, A, S]"]),
    "words": ({"reward": np.array([["a", "b"], ["c", "d"]])}, ["reward has dtype", "real numbers"]),
}


@pytest.mark.parametrize("name", BAD_MDPS)
def test_a_mistake_in_an_mdp_gets_one_line(refused, tmp_path, name):
    changes, words = BAD_MDPS[name]
    np.savez(tmp_path / "mdp.npz", **arrays(**changes))
    message = refused(["train", "--world", "file", "--mdp", "mdp.npz"])
    for word in ["--mdp mdp.npz", *words]:
        assert word in message


def test_a_file_without_its_arrays_or_not_a_file_at_all_gets_one_line(refused, tmp_path):
    np.savez(tmp_path / "part.npz", initial=np.ones(1))
    assert "lacks transition, reward" in refused(["train", "--world", "file", "--mdp", "part.npz"])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "nothing.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "objects.npz", **arrays(reward=np.array([{}], object)))
    with (tmp_path / "one_array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    np.savez(tmp_path / "whole.npz", **arrays())
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    for name in ("text", "nothing", "folder", "objects", "one_array", "half"):
        for option in (["--world", "file", "--mdp"], ["--reference"]):
            message = refused(["train", *option, f"{name}.npz"])
            assert f"{name}.npz cannot be read" in message or f"{name}.npz lacks obs, action" in message
            assert "numpy.savez" in message


BAD_REFERENCES = {
    "shape": ({"policy": np.full((3, 4), 0.25)}, ["policy has shape (3, 4)", "(25, 4)"]),
    "rows": ({"policy": np.full((25, 4), 0.3)}, ["policy[0] sums to 1.2"]),
    "zero": ({"policy": np.tile([1.0, 0, 0, 0], (25, 1))}, ["entry 0.0", "above 0"]),
    "actions out of range": ({"obs": np.zeros(3, int), "action": np.array([0, 4, 1])}, ["action holds 4", "0 to 3"]),
    "states out of range": ({"obs": np.array([0, 25]), "action": np.zeros(2, int)}, ["obs holds 25", "0 to 24"]),
    "lengths": ({"obs": np.zeros(3, int), "action": np.zeros(2, int)}, ["action has shape (2,)"]),
    "halves of states": ({"obs": np.array([0.5]), "action": np.zeros(1, int)}, ["obs holds 0.5", "whole numbers"]),
    "states of words": ({"obs": np.array(["a"]), "action": np.zeros(1, int)}, ["obs has dtype <U1", "real numbers"]),
    "one state alone": ({"obs": np.array(0), "action": np.array(0)}, ["obs has shape ()", "N ≥ 1"]),
    "no state at all": ({"obs": np.zeros(0, int), "action": np.zeros(0, int)}, ["obs has shape (0,)", "N ≥ 1"]),
    "words": ({"policy": np.full((25, 4), "a")}, ["policy has dtype <U1", "real numbers"]),
    "complex": ({"policy": np.full((25, 4), 0.25 + 0j)}, ["policy has dtype complex128", "real numbers"]),
    "NaN": ({"policy": np.full((25, 4), np.nan)}, ["policy has the entry nan", "above 0"]),
    "nothing": ({"other": np.zeros(3)}, ["lacks obs, action"]),
}


@pytest.mark.parametrize("name", BAD_REFERENCES)
def test_a_mistake_in_a_reference_policy_gets_one_line(refused, tmp_path, name):
    content, words = BAD_REFERENCES[name]
    np.savez(tmp_path / "reference.npz", **content)
    message = refused(["train", "--reference", "reference.npz"])
    for word in ["reference.npz", *words]:
        assert word in message


def test_a_game_whose_data_cannot_be_fetched_gets_one_line(refused, monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(worlds, "gymnax_world", offline)
    message = refused(["train", "--world", "gymnax", "--environment", "MNISTBandit-bsuite"])
    assert "--environment MNISTBandit-bsuite: no route to host" in message


def test_an_output_folder_that_is_not_a_run_gets_one_line(refused, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    message = refused(["train", "--out", "mine"])
    assert "not a run" in message
    assert "name another" in message
    (tmp_path / "file").write_text("")
    assert "file" in refused(["train", "--out", "file/run"])


def test_a_report_of_a_broken_run_gets_one_line(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(["report", "run"])
    (tmp_path / "run" / "config.json").write_text(json.dumps({"world": "gridworld"}))
    assert "holds no metrics" in refused(["report", "run"])


@pytest.mark.parametrize(
    ("option", "value", "required"),
    [
        ("policy", "tabel", "one of mlp, table"),
        ("gradients", 1, "one of sampled, exact"),
        ("seeds", 3.0, "a whole number"),
        ("seeds", True, "a whole number"),
        ("steps", "10", "a whole number"),
        ("seeds", (1, 2), "a whole number"),
        ("sigma", "0.1", "a number"),
        ("sigma", (0.1, False), "a number"),
        ("policy_hidden", (3.5,), "a whole number"),
        ("average_critic", 1, "True or False"),
        ("reference", None, "text"),
        ("discount", 10**400, "a number"),
        ("batch_size", 10**40, "a whole number, at least 2 and at most 1048576"),
        ("num_pairs", 10**12, "2 to 1048576"),
    ],
)
def test_from_python_a_value_of_another_type_is_refused(option, value, required):
    with pytest.raises(OptionError, match=f"--{option.replace('_', '-')} is .*; required: {required}"):
        configure(**{option: value})


@pytest.mark.parametrize("world", [3, None, ["gridworld"]])
def test_from_python_a_world_that_is_no_name_is_refused(world):
    with pytest.raises(OptionError, match=r"--world is .*; required: one of gridworld"):
        configure(world=world)


@pytest.mark.parametrize(
    ("option", "value", "same"),
    [
        ("sigma", 1, (1.0,)),
        ("sigma", np.array([0.5, 1]), (0.5, 1.0)),
        ("seeds", np.int64(4), 4),
        ("policy_hidden", 8, (8,)),
        ("chunk", 5, "5"),
        ("error_rate", 0, 0.0),
    ],
)
def test_from_python_what_means_the_same_is_the_same_run(option, value, same):
    found = configure(**{option: value})
    assert json.dumps(as_dict(found)) == json.dumps(as_dict(configure(**{option: same})))
    assert found.options[option] == same
