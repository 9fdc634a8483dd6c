"""One page on all claims, which could be the appendix of a paper."""

import base64
import html
from pathlib import Path
from typing import Any

from experiments.files import read_bytes, write_atomically

MOST_FIGURE = 2**26  # bytes
STYLE = """body{font:16px/1.5 Georgia,serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:14px;margin:.7rem 0}td,th{padding:.2rem .7rem;border-bottom:1px solid #ddd;
text-align:left;vertical-align:top}img{max-width:100%}.holds{color:#00704a}.fails,.refuted{color:#b3261e}h2{margin-top:2.5rem}
.small{color:#666;font-size:14px}"""


def write_page(folder: Path, results: dict[str, dict[str, Any]]) -> Path:
    """Writes `report.html`, self-contained: the table of verdicts, then a section with its figure for each claim."""
    rows = "".join(
        f"<tr><td><a href='#{name}'>{name}</a></td><td>{html.escape(r['statement'])}</td><td>{html.escape(r['prediction'])}"
        f"</td><td class='{_style(r)}'>{in_words(r)}</td><td>{r['seconds']:.0f} s</td></tr>"
        for name, r in results.items()
    )
    head = "<tr><th>claim</th><th>statement</th><th>predicted</th><th>verdict</th><th>cost</th></tr>"
    rule = (
        "A claim <em>holds</em> when the 95 % interval of each of its numbers lies inside a margin that was stated "
        "beforehand, <em>fails</em> when one lies outside, and is otherwise <em>not decided</em>. An exponent's interval "
        "has no end (inf) on the side to which its curve bends up to the last levels. It holds over the range that is named "
        "beside it, and only if the slope of the last levels, with an interval of its own, clears the margin too. An "
        "assumption, which speaks of every instance, is <em>refuted</em> where at least one was found that refutes it, and "
        "otherwise <em>not refuted</em>: no measurement proves it. A dash stands for no interval: what was measured is "
        "the same on all seeds or instances, or is the extreme of them."
    )
    sections = "".join(_section(name, result, folder / name / "figure.png") for name, result in results.items())
    quick = " (quick run: small budgets)" if any(r["quick"] for r in results.values()) else ""
    page = (
        f"<!doctype html><meta charset='utf-8'><title>Claims</title><style>{STYLE}</style><h1>Claims and verdicts{quick}"
        f"</h1><p>{rule}</p><table>{head}{rows}</table>{sections}"
    )
    write_atomically(folder, "report.html", page.encode())
    return folder / "report.html"


def short(x: float | str) -> str:
    """A number in four digits."""
    return x if isinstance(x, str) else f"{x:.4g}"


def in_brackets(number: dict[str, Any]) -> str:
    """The ends of a number's interval in brackets; a dash where it has no length."""
    low, high = number["interval"]
    return "–" if low == high else f"[{short(low)}, {short(high)}]"


def about(number: dict[str, Any]) -> list[str]:
    """What is to be said beside a number's verdict, in one line or none: why it is open, its range, and its last levels."""
    ends = "" if number["tail"] is None else "at the last levels [{}, {}]".format(*map(short, number["tail"]))
    said = [x for x in (number["undecided"], number["over"], ends) if x]
    return ["; ".join(said)] if said else []


def in_words(result: dict[str, Any]) -> str:
    """The claim's verdict; that of a refuted assumption with the shares of instances of all numbers that might refute it."""
    judged = [x for x in result["numbers"].values() if x["verdict"] in ("refuted", "not refuted")]
    if result["verdict"] != "refuted":
        return result["verdict"]
    shares = [100 * x["center"] for x in judged]
    spread = f"{shares[0]:.0f}" if len(shares) == 1 else f"{min(shares):.0f} to {max(shares):.0f}"
    return f"refuted, on {spread} % of instances" + (f" ({len(shares)} numbers)" if len(shares) > 1 else "")


def _style(judged: dict[str, Any]) -> str:
    """The class in the style sheet of a verdict: one word."""
    return judged["verdict"].replace(" ", "-")


def _section(name: str, result: dict[str, Any], figure: Path) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(number)}</td><td>{short(x['center'])}</td><td>{in_brackets(x)}</td>"
        f"<td>{'' if x['margin'] is None else '[' + ', '.join(map(short, x['margin'])) + ']'}</td>"
        f"<td class='{_style(x)}'>{html.escape(': '.join([x['verdict'], *about(x)]))}</td></tr>"
        for number, x in result["numbers"].items()
    )
    head = "<tr><th>number</th><th>measured</th><th>95 % interval</th><th>must lie in</th><th></th></tr>"
    picture = ""
    if result["figure"]:
        data = base64.b64encode(read_bytes(figure, MOST_FIGURE)).decode()
        picture = (
            f"<img alt='{html.escape(name)}: {html.escape(result['statement'])}' src='data:image/png;base64,{data}'>"
        )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in result["notes"])
    cost = ", ".join(f"{value:,.0f} {html.escape(what)}" for what, value in result["cost"].items())
    return (
        f"<h2 id='{name}'>{name}: <span class='{_style(result)}'>{in_words(result)}</span></h2>"
        f"<p>{html.escape(result['statement'])} <span class='small'>({html.escape(result['source'])}; {result['kind']})"
        f"</span></p><p>Predicted: {html.escape(result['prediction'])}.</p><table>{head}{rows}</table>{picture}"
        f"<ul>{notes}</ul><p class='small'>Cost: {cost or 'no samples'}; {result['seconds']:.0f} s.</p>"
    )
