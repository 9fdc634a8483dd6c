"""One page on all claims, which could be the appendix of a paper."""

from pathlib import Path
from typing import Any

from experiments.claims.results import FIGURE, HEAD, cost_in_words, in_words, number_rows
from experiments.files import read_bytes, write_atomically
from experiments.report.html import Markup, element, items, page, png, section, styled, table
from experiments.report.summary import number

MOST_FIGURE = 2**26  # bytes

RULE = """A claim *holds* when the 95 % interval of each of its numbers lies inside a margin that was stated beforehand,
*fails* when one lies outside, and is otherwise *not decided*. An exponent's interval has no end (inf) on the side to which
its curve bends up to the last levels. It holds over the range that is named beside it, and only if the slope of the last
levels, with an interval of its own, clears the margin too. An assumption, which speaks of every instance, is *refuted*
where at least one was found that refutes it, and otherwise *not refuted*: no measurement proves it. A claim without
margins is *reported*. A dash stands for no interval: what was measured is the same on all seeds or instances, or is the
extreme of them."""


def write_page(folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """Writes `report.html`, self-contained: the table of verdicts, then a section with its figure for each claim."""
    quick = " (quick run: small budgets)" if any(r["quick"] for r in results.values()) else ""
    rule = [x if i % 2 == 0 else element("em", x) for i, x in enumerate(RULE.split("*"))]
    head = ("claim", "statement", "predicted", "verdict", "cost")
    rows = []
    for name, r in results.items():
        link = element("a", name, attributes={"href": f"#{name}"})
        rows.append((link, r["statement"], r["prediction"], _styled(in_words(r), r), f"{r['seconds']:.0f} s"))
    sections = [_section(name, result, folder / name / FIGURE) for name, result in results.items()]
    content = page(f"Claims and verdicts{quick}", element("p", *rule), table(rows, head), *sections)
    write_atomically(folder, "report.html", content.encode())
    return folder / "report.html"


def _section(name: str, result: dict[str, Any], figure: Path) -> Markup:
    numbers, verdict = result["numbers"], in_words(result)
    each = zip(number_rows(numbers), numbers.values(), strict=True)
    rows = [(*cells, _styled(last, judged)) for (*cells, last), judged in each]
    picture = [png(read_bytes(figure, MOST_FIGURE), f"{name}: {result['statement']}")] if result["figure"] else []
    return section(
        f"{name}: {verdict}",
        element("p", f"{result['statement']} ", styled("span", "small", f"({result['source']}; {result['kind']})")),
        element("p", f"Predicted: {result['prediction']}. Verdict: ", _styled(verdict, result)),
        table(rows, HEAD),
        *picture,
        *map(_rows, result["tables"]),
        items(result["notes"]),
        styled("p", "small", f"Cost: {cost_in_words(result)}."),
        anchor=name,
    )


def _styled(text: str, judged: dict[str, Any]) -> Markup:
    """Returns a text in the class of the style sheet, one word, that a verdict has."""
    return styled("span", judged["verdict"].replace(" ", "-"), text)


def _rows(found: dict[str, Any]) -> Markup:
    """Returns a table of a result, with columns in the order in which the rows name them."""
    columns = list(dict.fromkeys(column for row in found["rows"] for column in row))
    rows = [[_cell(row.get(column)) for column in columns] for row in found["rows"]]
    return Markup(element("h3", found["title"]) + table(rows, columns))


def _cell(value: Any) -> str:
    """Returns a number in four digits, an interval of them in brackets, a text as it is, and nothing for None."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else number(value)
