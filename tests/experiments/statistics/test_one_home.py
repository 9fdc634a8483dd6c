"""Intervals are made in one file: everywhere else, as the syntax trees show, there is nothing to make one of."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HOME = ROOT / "experiments/statistics/intervals.py"

READY_MADE = {"binomtest", "bayes_mvs", "bootstrap", "mvsdist", "permutation_test", "proportion_confint", "sem"}
INVERSES = {"isf", "ppf", "ndtri", "stdtrit", "btdtri"}  # of distributions: bounds of 2.5 %
FACTORS = {1.96, 1.645, 2.576, 0.975, 97.5}  # of standard errors, and levels
QUANTILES = {"nanpercentile", "nanquantile", "percentile", "quantile"}
QUARTILES = {0.25, 0.5, 0.75, 25, 50, 75}  # how values spread, which is no interval of their mean
DRAWS = {"choice": 1, "integers": 2}  # of numpy's generators, which draw several with a size or one more argument


def made(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and word of each thing that intervals are made of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) is float and node.value in FACTORS:
            yield node.lineno, str(node.value)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("scipy", "statsmodels")):
            yield from ((node.lineno, x.name) for x in node.names if x.name in READY_MADE | INVERSES)
        if isinstance(node, ast.Attribute) and node.attr in INVERSES:
            yield node.lineno, node.attr
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield from _called(node, node.func)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and _is_twice_a_deviation(node):
            yield node.lineno, "times std"


def _called(call: ast.Call, function: ast.Attribute) -> Iterator[tuple[int, str]]:
    """What a call of a function of some module or object makes of an interval."""
    owner = ast.unparse(function.value)
    numbers = {x.value for x in ast.walk(call) if isinstance(x, ast.Constant) and isinstance(x.value, int | float)}
    if function.attr in QUANTILES and not numbers & QUARTILES:
        yield call.lineno, function.attr
    if function.attr in READY_MADE and owner != "intervals":
        yield call.lineno, function.attr
    several = len(call.args) > DRAWS.get(function.attr, 0) or "size" in {x.arg for x in call.keywords}
    if function.attr in DRAWS and several and "jax" not in owner:
        yield call.lineno, function.attr


def _is_twice_a_deviation(node: ast.BinOp) -> bool:
    factors = [x.value for x in (node.left, node.right) if isinstance(x, ast.Constant)]
    calls = [x.func for x in ast.walk(node) if isinstance(x, ast.Call)]
    deviations = [x for x in calls if isinstance(x, ast.Attribute) and x.attr in ("std", "var")]
    return bool(deviations) and any(type(x) in (int, float) and 1.5 <= x <= 4 for x in factors)


def test_no_other_file_of_the_project_makes_an_interval():
    found = []
    for path in sorted(x for part in ("bilevel", "envs", "experiments") for x in (ROOT / part).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if path != HOME:
            found += [f"{name}:{line}: {word}" for line, word in made(ast.parse(path.read_text()))]
    assert not found, f"take these from experiments.statistics.intervals: {found}"


def test_the_home_itself_is_seen_to_make_them():
    assert {word for _, word in made(ast.parse(HOME.read_text()))} == {"ppf", "isf", "quantile", "integers"}


@pytest.mark.parametrize(
    "code",
    [
        "low, high = np.quantile(resampled, [0.025, 0.975], axis=0)",
        "low = np.percentile(resampled, 2.5)",
        "low, high = np.nanquantile(resampled, ends)",
        "error = 1.96 * found.std(ddof=1) / np.sqrt(len(found))",
        "error = 2 * kept.std(ddof=1) / np.sqrt(len(kept))",
        "error = stats.sem(found)",
        "low = stats.beta.ppf(0.025, count, num - count + 1)",
        "from scipy.stats import binomtest",
        "low, high = stats.binomtest(count, num).proportion_ci()",
        "found = stats.bootstrap((values,), np.mean)",
        "picks = np.random.default_rng(0).choice(seeds, size=(2000, len(seeds)))",
        "picks = rng.integers(num, size=(2000, num))",
        "picks = rng.integers(0, num, (2000, num))",
    ],
)
def test_each_way_to_make_an_interval_by_hand_is_noticed(code):
    assert list(made(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "found = intervals.bootstrap(median, num)",
        "low, middle, high = np.quantile(curves, (0.25, 0.5, 0.75), axis=0)",
        "error = np.std(values, axis=0, ddof=1) / np.sqrt(num)",
        "found = jax.random.choice(key, num)",
        "step = 2 * step_size",
        "seed = rng.integers(2**32)",
    ],
)
def test_what_makes_none_is_left_alone(code):
    assert not list(made(ast.parse(code)))
