"""Words become records of options, by tyro; what cannot be read is explained by the first word that does not fit."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from bilevel.ranges import counts
from experiments.commands.arguments import ChoiceOptions
from experiments.settings.options import OptionError
from experiments.settings.parsing import by_flag, known, mistake, parse, refuse_beyond_floats


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a command of these tests."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names."""
    rate: tuple[float, ...] = (0.5,)
    """Numbers."""
    count: Annotated[int, counts(1, 9)] = 3
    """A number in a range."""
    fast: bool = False
    """A switch."""
    out: str = "here"
    """A folder."""


def read(*arguments):
    """The options, as the arguments of a command change them."""
    return parse(Options(), arguments, "try", "Tries.", "names and a few flags")


def test_words_become_values_in_any_order_and_spelling():
    assert read() == Options()
    assert read("a", "--out=x", "--count", "4", "--rate", "1", "2") == Options(("a",), (1.0, 2.0), 4, False, "x")
    assert read("--fast", "a", "b") == read("a", "b", "--no-fast", "--fast") == Options(("a", "b"), fast=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--otu", "x"], "try got --otu x; required: names and a few flags; did you mean --out?"),
        (["a", "--zzz"], "try got a --zzz; required: names and a few flags"),
        (["--out", ""], "try got --out ''; required"),
        (["--fast", "a", "--out"], "--out was given without a value; required: one value; the default is here"),
        (["--count", "many"], "--count is 'many'; required: a whole number; the default is 3"),
        (["--count", "10"], "--count is 10; required: a whole number, at least 1 and at most 9"),
        (["--rate", "1,2"], "--rate is '1,2'; required: values separated by spaces, as in --rate 1 2"),
        (["--tyro-print-completion", "nosuchshell"], "these arguments cannot be read"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(arguments, words):
    with pytest.raises(OptionError) as refused:
        read(*arguments)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_help_ends_the_command_with_what_it_does_and_its_options(capsys):
    with pytest.raises(SystemExit) as ended:
        read("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(text in said for text in ("usage: bilevel try", "Tries.", "--rate", "A number in a range.", "--quiet"))


def test_a_record_takes_what_it_knows_and_leaves_the_rest_in_order():
    words = ["--seed", "-1", "--world", "garnet", "--help", "x", "--no-go", "--k=v", "--config=a.yaml"]
    taken, others = known(ChoiceOptions(algorithm="alternating"), words)
    assert taken == ChoiceOptions("garnet", "alternating", "a.yaml")
    assert others == ["--seed", "-1", "--help", "x", "--no-go", "--k=v"]


def test_flags_come_with_the_values_that_follow_them():
    words = ["a", "--rate", "1", "-2", "--out=x=y", "--no-fast", "--count="]
    expected = [("", ["a"]), ("--rate", ["1", "-2"]), ("--out", ["x=y"]), ("--no-fast", []), ("--count", [""])]
    assert [*by_flag(words)] == expected


def test_the_first_word_that_does_not_fit_is_explained():
    def unknown(name):
        return OptionError(f"none is called {name}")

    for words, said in {
        "--rate 1 slow --count 99": "--rate is 'slow'",
        "--count 99 --rate slow": "--count is 99",
        "--speed 1 --count 99": "none is called speed",
        "x --count 99": "'x' belongs to no option",
        "--no-fast 1": "--no-fast got 1; required: no value, as in --fast or --no-fast",
        "--count 3": "these arguments cannot be read: --count 3",
    }.items():
        assert str(mistake([Options()], words.split(), unknown)).startswith(said)


@pytest.mark.parametrize("word", ["1e400", "-1e400", "1e-400", "0.001e-400"])
def test_a_number_beyond_floats_is_refused(word):
    with pytest.raises(OptionError, match=rf"--rate is {word}, which as a floating-point number is"):
        refuse_beyond_floats([Options()], ["--rate", "1", word])


def test_numbers_that_floats_have_are_not_refused():
    refuse_beyond_floats([Options()], ["--rate", "0", "0.0e-999", "inf", "-inf", "5e-324", "1e308", "--count", "1e400"])
