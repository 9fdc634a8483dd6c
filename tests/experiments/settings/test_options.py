"""An option has one home: its default, its range and its help are those of the record that it comes from."""

import ast
import inspect
import typing
from typing import NamedTuple

import pytest

from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper
from bilevel.algorithms.two_stage import TwoStageConfig, TwoStageHyper
from bilevel.gradients.critics import TDHyper, TDSizes
from bilevel.gradients.sampled import SampleSizes
from bilevel.preferences import Teacher
from bilevel.ranges import Positive
from bilevel.types import Coefficients
from experiments.settings import options
from experiments.settings.algorithms import ALGORITHMS
from experiments.settings.config import configure, default_config
from experiments.settings.options import (
    NAMED_PARTS,
    OptionError,
    Values,
    check_fields,
    fields,
    options_of,
    part,
    pick,
    swept,
)
from experiments.settings.worlds import WORLDS

CORE = (BilevelConfig, BilevelHyper, AlternatingConfig, AlternatingHyper, TwoStageConfig, TwoStageHyper)
CORE += (TDSizes, TDHyper, SampleSizes, Teacher, Coefficients)
FUNCTIONS = {"policy_optimizer", "reward_optimizer", "hypergradient"}  # options name them, records hold them


def pairs():
    """Every option that is a field of a record of `bilevel` too: (algorithm, option, its default, the record's)."""
    for algorithm, entry in ALGORITHMS.items():
        kinds = [entry.options, options.ProblemOptions, *(NAMED_PARTS[name] for name in entry.needs)]
        offered = {name: option for kind in kinds for name, option in options_of(kind).items()}
        records = [x for x in CORE if x in (entry.hyper,) or x not in {e.hyper for e in ALGORITHMS.values()}]
        for record in records:
            named_for_another = record.__name__.endswith("Config") and record.__module__ != entry.hyper.__module__
            for name, default in () if named_for_another else record._field_defaults.items():
                if name in offered and name not in FUNCTIONS:
                    yield algorithm, name, offered[name], default


def two_defaults(found) -> list[str]:
    """The options whose default differs from that of the record."""
    differing = []
    for algorithm, name, option, default in found:
        given = option.default[0] if option.kind == Values else option.default
        differing += [] if given == default else [f"{algorithm}: {name}"]
    return differing


def test_no_option_has_two_defaults():
    found = list(pairs())
    assert len({name for _, name, _, _ in found}) > 20
    assert two_defaults(found) == []
    first = found[0]
    assert two_defaults([(*first[:3], object())]) == [f"{first[0]}: {first[1]}"]


def test_optimizers_have_the_default_of_the_record_by_name():
    for config, entry in (
        (BilevelConfig, "bilevel"),
        (AlternatingConfig, "alternating"),
        (TwoStageConfig, "two_stage"),
    ):
        for name in ("policy_optimizer", "reward_optimizer"):
            default = options_of(ALGORITHMS[entry].options)[name].default
            assert default == config._field_defaults[name].__name__


def test_a_default_is_said_once_in_the_source():
    # In the sources of the settings nothing but parts of their own, and what a world sets, has a default.
    tree = ast.parse(inspect.getsource(options))
    own = {
        field.target.id
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and field.value is not None
    }
    core = {name for record in CORE for name in record._field_defaults}
    assert own & core == set()


class Toy(NamedTuple):
    """A record with one number."""

    rate: Positive = 0.5
    """The rate, above 0."""


def test_a_swept_field_keeps_range_and_help_and_takes_several_values():
    kind = part("ToyOptions", "A toy.", swept(Toy))
    option = options_of(kind)["rate"]
    assert (option.kind, option.default) == (Values, (0.5,))
    assert option.range.required == "a finite number above 0"
    annotation, _ = fields(kind)["rate"]
    assert any("The rate, above 0. Several values: a sweep." in str(x) for x in typing.get_args(annotation))
    with pytest.raises(OptionError, match=r"--rate is -1.0; required: a finite number above 0; the default is 0.5"):
        check_fields(kind((1.0, -1.0)))
    with pytest.raises(OptionError, match="--rate got no value"):
        check_fields(kind(()))


def test_pick_takes_the_fields_that_there_are():
    assert pick(Toy, {"rate": 2.0, "other": 1}) == Toy(2.0)
    assert pick(Toy, {}) == Toy()


def test_names_are_unique_over_all_parts():
    for algorithm in ALGORITHMS:
        for world in WORLDS:
            parts = default_config(world, algorithm).parts.values()
            names = [name for x in parts for name in options_of(type(x))]
            assert len(names) == len(set(names)), (world, algorithm)


def test_every_option_has_a_text():
    for kind in (*NAMED_PARTS.values(), options.RunOptions, options.ProblemOptions, *WORLDS.values()):
        for name, (annotation, _) in fields(kind).items():
            assert any(getattr(x, "help", None) for x in getattr(annotation, "__metadata__", ())), (kind, name)


def test_configure_takes_every_option_by_its_name():
    config = configure("garnet", "bilevel", sigma=0.3, num_chains=8, num_transitions=64, myopia=0.5, states=4)
    assert config.options["sigma"] == (0.3,)
    assert config.named["critic"].num_chains == 8
    assert config.named["annotator"] == Teacher(myopia=0.5)
    assert config.world.states == 4
