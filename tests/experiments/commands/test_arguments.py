"""A run's configuration from flags and a file: flags win, what is printed is what is read, mistakes name the file."""

import pytest

from experiments.__main__ import main
from experiments.commands import plan, train, tune
from experiments.commands.arguments import given_options, parse_train
from experiments.runs.driver import EXTENDABLE, PLACEMENT
from experiments.runs.folder import run_name
from experiments.settings.config import as_dict
from experiments.settings.options import OptionError

RUNS = {
    "the default": [],
    "a sweep": ["--sigma", "0.03", "1e-5", "--kl-weight", "0.2", "0.5", "--chunk", "all"],
    "infinite and empty": ["--critic-radius", "inf", "--skip-below", "-inf", "--policy-hidden"],
    "switches": ["--no-average-critic", "--reset-critic", "--reuse-labels"],
    "another world": ["--world", "cartpole", "--algorithm", "two_stage", "--cells", "3", "3", "8", "6"],
    "texts": ["--reference", "a b.npz", "--policy-optimizer", "sgd:momentum=0.9", "--precision", "float64"],
}


@pytest.fixture
def printed(tmp_path, capsys):
    """The path of a file that holds what a command prints with --print-config."""

    def write(command, arguments):
        with pytest.raises(SystemExit) as ended:
            main([command, *arguments, "--print-config"])
        assert not ended.value.code
        (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
        return str(tmp_path / "run.yaml")

    return write


def named(config):
    """The name of a run's folder, by default."""
    return run_name(config.world_name, config.algorithm_name, as_dict(config), EXTENDABLE + PLACEMENT)


@pytest.mark.parametrize("name", RUNS)
def test_a_configuration_that_was_printed_is_the_same_run(printed, name):
    config, *_ = parse_train(RUNS[name])
    again, *_ = parse_train(["--config", printed("train", RUNS[name])])
    assert again == config and named(again) == named(config)


def test_a_configuration_that_was_read_is_printed_as_it_was(printed, capsys):
    path = printed("train", RUNS["a sweep"])
    with open(path) as file:
        text = file.read()
    printed("train", ["--config", path])
    with open(path) as file:
        assert file.read() == text


def test_a_plan_of_a_printed_configuration_is_of_the_same_run(printed, monkeypatch):
    planned = []
    monkeypatch.setattr(
        plan, "plan", lambda *asked: planned.append(asked) or plan.Plan(1, 1, 1.0, None, 1.0, None, 1.0)
    )
    asked = ["--world", "garnet", "--sigma", "0.3", "--seeds", "7"]
    path = printed("plan", [*asked, "--target", "cuda", "--target-devices", "3"])
    for arguments in (asked, ["--config", path]):
        assert main(["plan", *arguments, "--target", "tpu", "--target-devices", "2"]) == 0
    assert planned[0] == planned[1] and planned[0][1:] == ("tpu", 2)


def test_a_search_of_a_printed_configuration_searches_for_the_same_numbers(printed, monkeypatch, tmp_path):
    searched = []
    monkeypatch.setattr(tune, "tune", lambda *asked: searched.append(asked))
    asked = ["--world", "garnet", "--sigma", "0.2", "--seed", "3"]
    for arguments in (asked, ["--config", printed("tune", [*asked, "--budget", "9"])]):
        assert main(["tune", *arguments, "--budget", "10000000", "--candidates", "5"]) == 0
    (config, options, names, rest, _), again = searched
    assert again[:3] == (config, options, names)
    assert names == ["policy_step_size", "reward_step_size", "critic_step_size"]
    assert rest == asked and again[3] == ["--config", str(tmp_path / "run.yaml")]


def test_flags_win_over_the_file_and_the_file_over_the_defaults_of_the_world(tmp_path):
    (tmp_path / "run.toml").write_text(
        'world = "cartpole"\nkl_weight = 0.3\nsteps = 7\nseeds = 5\naverage_critic = false\n'
    )
    path = ["--config", str(tmp_path / "run.toml")]
    config, *_ = parse_train([*path, "--steps", "8", "--average-critic"])
    found = {"kl_weight": (0.3,), "discount": (0.998,), "steps": 8, "seeds": 5, "average_critic": True}
    assert config.world_name == "cartpole" and config.options | found == config.options
    config, *_ = parse_train(["--world", "lqr", *path])
    assert config.world_name == "lqr" and config.options["discount"] == (0.95,)


def test_only_all_together_must_fit(tmp_path):
    (tmp_path / "run.yaml").write_text("gradients: exact\nkl_weight: 0\n")
    path = ["--config", str(tmp_path / "run.yaml")]
    assert parse_train([*path, "--kl-weight", "0.5"])[0].options["gradients"] == "exact"
    with pytest.raises(OptionError, match="--kl-weight is 0 with --gradients exact"):
        parse_train(path)


MISTAKES = {
    "an unknown name": ("sgima: 1", "bilevel on gridworld has no option --sgima; did you mean --sigma?"),
    "a name of another world": ("contexts: 3", "--contexts; it is one of --world bandit"),
    "a name that is no text": ("1: 2", "has no option --1"),
    "an unknown world": ("world: gridwrld", "--world is 'gridwrld'; required: one of gridworld"),
    "a world that is a number": ("world: 3", "--world is '3'; required: one of gridworld"),
    "two algorithms": ("algorithm: [bilevel, two_stage]", "--algorithm is"),
    "a word for a number": ("steps: many", "--steps is 'many'; required: a whole number"),
    "a truth for a number": ("steps: true", "--steps is True; required: a whole number"),
    "a part for a whole": ("steps: 1.5", "--steps is 1.5; required: a whole number"),
    "numbers for one": ("steps: [1, 2]", "--steps is [1, 2]; required: a whole number"),
    "a number for a truth": ("average_critic: 1", "--average-critic is 1; required: True or False"),
    "a word among numbers": ("sigma: [0.1, high]", "--sigma is 'high'; required: a number"),
    "no numbers": ("sigma: []", "--sigma got no value"),
    "a number out of its range": ("seeds: 0", "--seeds is 0; required: a whole number, at least 1"),
    "a place of results": ("out: runs/mine", "--out is no option of the run; required: on the command line"),
    "another file": ("config: other.yaml", "--config is no option of the run"),
    "a damaged file": ("sigma: [", "cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("command", ["train", "tune", "plan"])
def test_a_mistake_in_a_file_gets_one_line_that_names_it(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    text, words = MISTAKES[name]
    (tmp_path / "run.yaml").write_text(text)
    assert main([command, "--config", "run.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bilevel: --config run.yaml") and words in err, err
    assert [*tmp_path.iterdir()] == [tmp_path / "run.yaml"]


def test_a_flag_that_is_wrong_is_not_said_to_stand_in_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 3")
    for flags in (["--world", "zzz"], ["--sigma", "-1"], ["--sgima", "1"]):
        with pytest.raises(OptionError) as refused:
            parse_train(["--config", str(tmp_path / "run.yaml"), *flags])
        assert "run.yaml" not in str(refused.value)


def test_a_run_from_a_file_goes_on_in_the_folder_of_the_same_run(tmp_path, monkeypatch, printed, quick_runs):
    monkeypatch.chdir(tmp_path)
    tiny = "--world garnet --algorithm alternating --gradients exact --policy table --reward table --segment-length 2"
    tiny = [*tiny.split(), "--num-policy-steps", "1", "--width", "2", "--seeds", "2", "--steps", "2", "--chunk", "1"]
    assert main(["train", *tiny, "--quiet"]) == 0
    monkeypatch.setattr(train, "idle", lambda config, given: [pytest.fail(f"{given}")] if given != ["config"] else [])
    assert main(["train", "--config", printed("train", tiny), "--quiet"]) == 0
    assert len([*(tmp_path / "runs").iterdir()]) == 1


def test_the_options_that_are_given_are_those_of_flags_in_any_spelling():
    words = ["--sigma", "0.1", "--no-reuse-labels", "--kl_weight=0.2", "--skip-below", "-inf"]
    assert given_options(words) == ["sigma", "reuse_labels", "kl_weight", "skip_below"]
