"""One page on all claims, which could be the appendix of a paper."""

import base64
import html
from pathlib import Path
from typing import Any

from experiments.claims.results import (
    FIGURE,
    MOST_FIGURE,
    cost_in_words,
    in_brackets,
    in_words,
    judged_in_words,
    margin_in_words,
    short,
)
from experiments.files import read_bytes, write_atomically

STYLE = """body{font:16px/1.5 Georgia,serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:14px;margin:.7rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top}img{max-width:100%}.holds{color:#00704a}.fails,.refuted{color:#b3261e}h2{margin-top:2.5rem}
.small{color:#666;font-size:14px}"""
RULE = """A claim *holds* when the 95 % interval of each of its numbers lies inside a margin that was stated beforehand,
*fails* when one lies outside, and is otherwise *not decided*. An exponent's interval has no end (inf) on the side to which
its curve bends up to the last levels. It holds over the range that is named beside it, and only if the slope of the last
levels, with an interval of its own, clears the margin too. An assumption, which speaks of every instance, is *refuted*
where at least one was found that refutes it, and otherwise *not refuted*: no measurement proves it. A claim without
margins is *reported*. A dash stands for no interval: what was measured is the same on all seeds or instances, or is the
extreme of them."""


def write_page(folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """Writes `report.html`, self-contained: the table of verdicts, then a section with its figure for each claim."""
    head = "<tr><th>claim</th><th>statement</th><th>predicted</th><th>verdict</th><th>cost</th></tr>"
    rows = "".join(
        f"<tr><td><a href='#{name}'>{name}</a></td><td>{html.escape(r['statement'])}</td><td>{html.escape(r['prediction'])}"
        f"</td><td class='{_style(r)}'>{in_words(r)}</td><td>{r['seconds']:.0f} s</td></tr>"
        for name, r in results.items()
    )
    sections = "".join(_section(name, result, folder / name / FIGURE) for name, result in results.items())
    quick = " (quick run: small budgets)" if any(r["quick"] for r in results.values()) else ""
    emphasised = "".join(x if i % 2 == 0 else f"<em>{x}</em>" for i, x in enumerate(RULE.split("*")))
    page = (
        f"<!doctype html><meta charset='utf-8'><title>Claims</title><style>{STYLE}</style><h1>Claims and verdicts{quick}"
        f"</h1><p>{emphasised}</p><table>{head}{rows}</table>{sections}"
    )
    write_atomically(folder, "report.html", page.encode())
    return folder / "report.html"


def _style(judged: dict[str, Any]) -> str:
    """The class in the style sheet of a verdict: one word."""
    return judged["verdict"].replace(" ", "-")


def _section(name: str, result: dict[str, Any], figure: Path) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(number)}</td><td>{short(x['center'])}</td><td>{in_brackets(x)}</td>"
        f"<td>{margin_in_words(x)}</td><td class='{_style(x)}'>{html.escape(judged_in_words(x))}</td></tr>"
        for number, x in result["numbers"].items()
    )
    head = "<tr><th>number</th><th>measured</th><th>95 % interval</th><th>must lie in</th><th></th></tr>"
    picture = ""
    if result["figure"]:
        data = base64.b64encode(read_bytes(figure, MOST_FIGURE)).decode()
        picture = (
            f"<img alt='{html.escape(name)}: {html.escape(result['statement'])}' src='data:image/png;base64,{data}'>"
        )
    tables = "".join(map(_table, result["tables"]))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result["notes"])
    return (
        f"<h2 id='{name}'>{name}: <span class='{_style(result)}'>{in_words(result)}</span></h2>"
        f"<p>{html.escape(result['statement'])} <span class='small'>({html.escape(result['source'])}; {result['kind']})"
        f"</span></p><p>Predicted: {html.escape(result['prediction'])}.</p><table>{head}{rows}</table>{picture}"
        f"{tables}<ul>{notes}</ul><p class='small'>Cost: {html.escape(cost_in_words(result))}.</p>"
    )


def _table(table: dict[str, Any]) -> str:
    """A table of a result, columns in the order in which the rows name them."""
    columns = dict.fromkeys(column for row in table["rows"] for column in row)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(row.get(column)))}</td>" for column in columns) + "</tr>"
        for row in table["rows"]
    )
    return f"<h3>{html.escape(table['title'])}</h3><table><tr>{head}</tr>{rows}</table>"


def _cell(value: Any) -> str:
    """A number in four digits, an interval of them in brackets, a text as it is, nothing for None."""
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else short(value)
