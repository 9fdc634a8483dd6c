"""One page on all claims, which could be the appendix of a paper."""

from pathlib import Path
from typing import Any

from experiments.claims.results import FIGURE, HEAD, MOST_FIGURE, cost_in_words, in_words, number_rows, short
from experiments.files import read_bytes, write_atomically
from experiments.report.html import Markup, element, items, page, png, section, styled, table

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
    rows = [
        (element("a", name, attributes={"href": f"#{name}"}), r["statement"], r["prediction"], _verdict(r), _seconds(r))
        for name, r in results.items()
    ]
    content = page(
        f"Claims and verdicts{quick}",
        element("p", *rule),
        table(rows, ("claim", "statement", "predicted", "verdict", "cost")),
        *(_section(name, result, folder / name / FIGURE) for name, result in results.items()),
    )
    write_atomically(folder, "report.html", content.encode())
    return folder / "report.html"


def _section(name: str, result: dict[str, Any], figure: Path) -> Markup:
    source = styled("span", "small", f"({result['source']}; {result['kind']})")
    styles = map(_style, result["numbers"].values())
    rows = [
        (*cells, styled("span", style, verdict))
        for (*cells, verdict), style in zip(number_rows(result["numbers"]), styles, strict=True)
    ]
    picture = [png(read_bytes(figure, MOST_FIGURE), f"{name}: {result['statement']}")] if result["figure"] else []
    return section(
        f"{name}: {in_words(result)}",
        element("p", result["statement"], " ", source),
        element("p", f"Predicted: {result['prediction']}. Verdict: ", _verdict(result)),
        table(rows, HEAD),
        *picture,
        *map(_rows, result["tables"]),
        items(result["notes"]),
        styled("p", "small", f"Cost: {cost_in_words(result)}."),
        anchor=name,
    )


def _verdict(result: dict[str, Any]) -> Markup:
    return styled("span", _style(result), in_words(result))


def _style(judged: dict[str, Any]) -> str:
    """Returns the class of a verdict in the style sheet, which is one word."""
    return judged["verdict"].replace(" ", "-")


def _seconds(result: dict[str, Any]) -> str:
    return f"{result['seconds']:.0f} s"


def _rows(found: dict[str, Any]) -> Markup:
    """Returns a table of a result, with columns in the order in which the rows name them."""
    columns = list(dict.fromkeys(column for row in found["rows"] for column in row))
    rows = [[_cell(row.get(column)) for column in columns] for row in found["rows"]]
    return Markup(element("h3", found["title"]) + table(rows, columns))


def _cell(value: Any) -> str:
    """Returns a number in four digits, an interval of them in brackets, a text as it is, and nothing for None."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else short(value)
