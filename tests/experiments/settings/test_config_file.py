"""A file of options holds what was written to it, and is read only where it holds options and nothing else."""

import pytest

from experiments.settings.config_file import as_yaml, read_options
from experiments.settings.options import OptionError


def read(folder, text, name="run.yaml"):
    """The options in a file of that text."""
    (folder / name).write_text(text)
    return read_options(str(folder / name))


def test_what_is_written_is_read_back_with_its_types(tmp_path):
    options = {"steps": 100, "chunk": "10", "sigma": [0.1, 1e-05, 1e300], "reward_bound": float("inf"), "map": "open"}
    options |= {"skip_below": float("-inf"), "policy_hidden": [], "average_critic": True, "reference": "π ref: no.npz"}
    options |= {
        "policy_optimizer": "sgd:momentum=0.9,nesterov=1",
        "mdp": "",
        "coordinator": "[::1]:1234",
        "body": "1e3",
    }
    found = read(tmp_path, as_yaml(options))
    assert found == options and list(found) == list(options)
    assert [*map(type, found.values())] == [*map(type, options.values())]


def test_tuples_are_written_as_lists(tmp_path):
    assert read(tmp_path, as_yaml({"sigma": (0.1, 0.3), "steps": 3})) == {"sigma": [0.1, 0.3], "steps": 3}


@pytest.mark.parametrize("word", ["1e-3", "1E-3", "1.0e-3", "1.e-03", "0.001", "+1e-3"])
def test_a_number_may_be_written_as_everybody_writes_it(tmp_path, word):
    assert read(tmp_path, f"sigma: {word}") == {"sigma": 0.001}


@pytest.mark.parametrize("word", ["inf", ".inf", "+inf", ".Inf"])
def test_infinity_may_be_written_as_everybody_writes_it(tmp_path, word):
    assert read(tmp_path, f"critic_radius: [{word}]") == {"critic_radius": [float("inf")]}


def test_yaml_and_toml_say_the_same(tmp_path):
    toml = 'world = "garnet"\nsigma = [1e-3, 3.0]\nreward_bound = inf\nreuse-labels = true\nchunk = 5\n'
    yaml = "world: garnet\nsigma: [1e-3, 3.0]\nreward_bound: inf\nreuse-labels: true\nchunk: 5\n"
    assert read(tmp_path, toml, "run.toml") == read(tmp_path, yaml) == read(tmp_path, yaml, "run.yml")


def test_an_empty_file_and_one_of_comments_hold_no_options(tmp_path):
    for name in ("run.yaml", "run.toml"):
        assert read(tmp_path, "", name) == read(tmp_path, "# nothing yet\n", name) == {}


BOMB = "a: &a [1, 1]\n" + "".join(f"{y}: &{y} [*{x}, *{x}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True))
BAD = {
    "a list": ("- 1\n", "expected a mapping"),
    "a word": ("steps", "expected a mapping"),
    "half a list": ("sigma: [0.1, ", "while parsing"),
    "a tab": ("\tsteps: 1", "cannot start any token"),
    "two documents": ("steps: 1\n---\nsteps: 2\n", "a single document"),
    "an object of Python": ("steps: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    "a day that is none": ("seed: 2020-13-45", "month must be in 1..12"),
    "a number without end": ("seed: " + "9" * 5000, "4300"),
    "lists in lists without end": ("a: " + "[" * 10_000, "nests too deep"),
    "a name twice": ("sigma: 1\nsteps: 2\nsigma: 3\n", "has sigma 2 times"),
    "a name in two spellings": ("kl_weight: 1\nkl-weight: 2\n", "has kl_weight 2 times"),
    "nothing": ("steps:\n", "steps has neither a value nor a list"),
    "a mapping": ("run: {steps: 3}\n", "run has neither a value nor a list"),
    "a list of lists": ("sigma: [[0.1]]\n", "sigma has neither a value nor a list"),
    "a list that doubles and doubles": (BOMB, "b has neither a value nor a list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_anything_else_is_refused_with_its_name(tmp_path, name):
    text, words = BAD[name]
    with pytest.raises(OptionError) as refused:
        read(tmp_path, text)
    assert f"--config {tmp_path}/run.yaml" in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps = ", "Invalid value"),
        ("steps = 1\nsteps = 2", "Cannot overwrite"),
        ("[run]\nsteps = 3", "run has neither"),
    ],
)
def test_a_damaged_toml_file_is_refused_too(tmp_path, text, words):
    with pytest.raises(OptionError, match=rf"run\.toml.*{words}"):
        read(tmp_path, text, "run.toml")


def test_what_is_no_file_of_options_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"sigma: \xff")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    expected = {
        "none.yaml": "No such file",
        "folder.yaml": "is no file",
        "bytes.yaml": "utf-8",
        "large.yaml": "more than",
    }
    for name, words in (expected | {"run.json": "ends in none of .yaml, .yml, .toml"}).items():
        with pytest.raises(OptionError, match=rf"{name}.*{words}.*required: a YAML or TOML file"):
            read_options(str(tmp_path / name))
