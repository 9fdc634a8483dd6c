"""A digest changes with what is computed, and with nothing else."""

import importlib.metadata

import pytest

from experiments.claims import digest as home
from experiments.claims.digest import digest, reached
from experiments.claims.runner import load

OURS = ("P1.bias", "P1.value", "P1.hypergradient", "P1.estimator")


def digests():
    """Of what each of a few claims measures with, and of all that they consist of."""
    loaded = {name: load(name) for name in OURS}
    return {name: x.measured for name, x in loaded.items()}, {name: x.reported for name, x in loaded.items()}


@pytest.fixture
def edit(monkeypatch):
    """Replaces a text in a module's source, which must hold it, for the digest alone."""
    sources = {}
    monkeypatch.setattr(home, "_source", lambda name: sources.get(name) or home._file(name).read_bytes())

    def change(module, old, new):
        before = home._source(module).decode()
        assert old in before
        sources[module] = before.replace(old, new).encode()

    return change


def changed(before, after):
    return {name for name in OURS if before[name] != after[name]}


def test_a_comment_or_a_docstring_changes_no_digest(edit):
    before = digests()
    edit("bilevel.types", "from collections", "# A comment.\nfrom collections")
    edit("bilevel.types", '"""The real numbers that define a problem.', '"""Numbers.')
    edit("bilevel.types", '    """γ of values', '    """Gamma, of values')
    edit("bilevel.exact.bilevel", '"""The functions of one instance', '"""What is known of one instance')
    edit("bilevel.exact.bilevel", "def exact_bilevel(\n    problem: Problem,", "def exact_bilevel(problem: 'Problem',")
    assert digests() == before


def test_a_formula_changes_the_digests_of_what_reaches_it_and_no_other(edit):
    before = digests()
    edit(
        "bilevel.gradients.hypergradients",
        "return UpperGradient(value, direct, response, solved(value))\n\n    ",
        "return UpperGradient(value, direct, 2 * response, solved(value))\n\n    ",
    )
    after = digests()
    assert changed(before[0], after[0]) == changed(before[1], after[1]) == {"P1.hypergradient"}
    edit("bilevel.gradients.sampled", "jnp.expm1(log_products)", "jnp.exp(log_products)")
    assert changed(before[0], digests()[0]) == {"P1.hypergradient", "P1.estimator"}
    edit("bilevel.exact.bilevel", "of_policy(params, proxy)) / sigma", "of_policy(params, proxy)) * sigma")
    assert changed(before[0], digests()[0]) == {*OURS}


def test_a_constant_counts_where_it_is_used(edit):
    before = digests()[0]
    edit("experiments.claims.p1.proxy_errors", "0.002, 0.001]", "0.002, 0.0012]")
    assert changed(before, digests()[0]) == {"P1.bias", "P1.value"}
    edit("experiments.claims.p1.hypergradient", "STEP = 1e-5", "STEP = 1e-6")
    assert changed(before, digests()[0]) == {"P1.bias", "P1.value", "P1.hypergradient"}


@pytest.mark.parametrize(
    ("module", "old", "new", "reported"),
    [
        ("experiments.claims.p1.bias", '"‖∇Φ_σ − ∇Φ‖, nats a unit of φ"', '"size"', {"P1.bias"}),  # drawn
        ("experiments.claims.p1.value", "found.value.min()", "found.value.max()", {"P1.value"}),  # judged
        ("experiments.claims.p1.bias", "Margin(0.95, 1.05)", "Margin(0.9, 1.1)", {"P1.bias"}),  # stated
        ("experiments.claims.claim", '"reported")', '"told")', {*OURS}),  # the rule
        ("experiments.claims.panels", "alpha=0.3", "alpha=0.4", {*OURS}),
        ("experiments.files", "file.flush()", "file.flush(), file.flush()", set()),  # where it is kept
    ],
)
def test_what_is_judged_drawn_said_or_kept_measures_nothing_again(edit, module, old, new, reported):
    before = digests()
    edit(module, old, new)
    after = digests()
    assert after[0] == before[0] and changed(before[1], after[1]) == reported


def test_versions_of_jax_jaxlib_and_numpy_count_and_of_what_else_is_reached(monkeypatch):
    real, before = importlib.metadata.version, digests()[0]
    for package in ("jax", "jaxlib", "numpy"):
        monkeypatch.setattr(importlib.metadata, "version", lambda x, p=package: "9" if x == p else real(x))
        assert changed(before, digests()[0]) == {*OURS}
    monkeypatch.setattr(importlib.metadata, "version", lambda x: "9" if x == "matplotlib" else real(x))
    assert digests()[0] == before


# By hand --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Writes modules of a package `fakes`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(home, "PACKAGES", ("fakes",))

    def write(**modules):
        (tmp_path / "fakes").mkdir(exist_ok=True)
        for name, code in {"__init__": "", **modules}.items():
            (tmp_path / "fakes" / f"{name}.py").write_text(code)

    return write


def names(*places):
    """What is reached within `fakes`."""
    return {x.removeprefix("fakes.") for x in reached(*places) if x.startswith("fakes")}


def test_what_a_definition_names_is_reached_and_what_is_local_is_not(fakes):
    fakes(
        a="""
def f(x: annotated, y=DEFAULT):
    g = 1  # not the function below
    return [h(x) for h in (x, CONSTANT, g)]
def g(): return h()
def h(): return unknown()
annotated, DEFAULT, CONSTANT, LEFT = 1, 2, [3], 4
class Base: pass
class Thing(Base):
    field: annotated = DEFAULT
    def method(self): return g()
"""
    )
    assert names(("fakes.a", "f")) == {"a:f", "a:DEFAULT", "a:CONSTANT"}
    assert names(("fakes.a", "g")) == {"a:g", "a:h"}
    assert names(("fakes.a", "Thing")) == {"a:Thing", "a:Base", "a:DEFAULT", "a:g", "a:h"}


def test_imports_are_followed_however_they_are_written(fakes):
    fakes(
        a="""
from .b import x as renamed, unused
from . import c
import fakes.d as d
def f():
    from fakes.e import late
    return renamed + c.value + d.value + late
def whole(): return c
""",
        b="x = y\ny = 1\nunused = 2",
        c="value = 1\nother = 2",
        d="value = 1\nother = 2",
        e="late = 1\nother = 2",
    )
    assert names(("fakes.a", "f")) == {"a:f", "a:renamed", "b:x", "b:y", "c:value", "d:value", "e:late"}
    assert names(("fakes.a", "whole")) == {"a:whole", "a:c", "c:value", "c:other"}


def test_it_counts_from_where_a_name_is_imported(fakes):
    modules = {"a": "from fakes.b import x\nf = x", "b": "x = 1", "c": "x = 1"}
    fakes(**modules)
    before = digest(("fakes.a", "f"))
    fakes(**modules | {"a": "from fakes.c import x\nf = x"})
    assert digest(("fakes.a", "f")) != before


def test_statements_with_an_effect_count_wherever_their_module_is_imported(fakes):
    modules = {"a": "import fakes.b\nf = 1", "b": "from .c import g\ng.table['key'] = h\nh = 1", "c": "g = 2\nleft = 3"}
    fakes(**modules)
    assert names(("fakes.a", "f")) == {"a:f", "b:<effects>", "b:g", "b:h", "c:g"}
    fakes(**modules | {"b": "from .c import g\nh = 1"})
    assert names(("fakes.a", "f")) == {"a:f"}


def test_a_block_that_only_binds_names_counts_where_they_are_used(fakes):
    fakes(a="if flag:\n    from fakes.b import x\nelse:\n    x = 1\nflag = True\nf = x\nother = 2", b="x = 1")
    assert names(("fakes.a", "other")) == {"a:other"}
    assert names(("fakes.a", "f")) == {"a:f", "a:x", "a:flag", "b:x"}


def test_of_a_call_one_keyword_alone_can_be_asked_for(fakes):
    fakes(
        a="def measure(): return 1\ndef draw(): return 2\nCLAIM = Claim(measure=partial(measure, x), draw=draw)\nx = 1"
    )
    assert names(("fakes.a", "CLAIM.measure")) == {"a:CLAIM.measure", "a:measure", "a:x"}
    assert names(("fakes.a", "CLAIM")) == {"a:CLAIM", "a:measure", "a:draw", "a:x"}


@pytest.mark.parametrize("name", ["nothing", "CLAIM.judge"])
def test_what_is_not_there_has_no_digest(fakes, name):
    fakes(a="CLAIM = Claim(measure=1)")
    with pytest.raises(LookupError, match=f"fakes.a defines no {name}"):
        digest(("fakes.a", name))
