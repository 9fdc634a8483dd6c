"""What is reported of a claim: the JSON that its folder holds, whether it is of this code, and its words."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from experiments.claims.claim import Claim, Measurement, Number, judge, together
from experiments.files import RunFolderError, read_bytes, read_json

RESULT, FIGURE = "result.json", "figure.png"
MOST_FIGURE = 2**26  # bytes
REPORTED, SHARES = 6, 24  # numbers without a margin that the table shows, and of an assumption


class Judged(TypedDict):
    """A number in a result; text stands for an infinity, and for what is not a number."""

    center: float | str
    interval: list[float | str]
    margin: list[float | str] | None
    verdict: str
    undecided: str
    over: str
    tail: list[float | str] | None


class Result(TypedDict):
    """What `result.json` holds; `measured` and `reported` are digests of code, `check` is one of all else in it."""

    statement: str
    source: str
    prediction: str
    kind: str
    verdict: str
    numbers: dict[str, Judged]
    cost: dict[str, float]
    notes: list[str]
    tables: list[dict]
    measured: str
    reported: str
    seconds: float
    quick: bool
    figure: str
    check: str


def describe(claim: Claim, found: Measurement) -> dict[str, Any]:
    """Returns claim, numbers and verdicts as JSON values: what `Result` holds of them."""
    absent = Number(math.nan, math.nan, math.nan, "not measured")
    numbers = dict.fromkeys(claim.margins, absent) | found.numbers
    verdicts = judge(claim, numbers)
    return {
        "statement": claim.statement,
        "source": claim.source,
        "prediction": claim.prediction,
        "kind": "exact" if claim.exact else "Monte Carlo",
        "verdict": together(verdicts),
        "numbers": {
            name: {
                "center": as_json(x.center),
                "interval": as_json([x.low, x.high]),
                "margin": as_json(claim.margins.get(name)),
                "verdict": verdicts.get(name, "reported"),
                "undecided": x.undecided,
                "over": x.over,
                "tail": as_json(x.tail),
            }
            for name, x in numbers.items()
        },
        "cost": as_json(found.cost),
        "notes": list(found.notes),
        "tables": [{"title": table.title, "rows": as_json(table.rows)} for table in found.tables],
    }


def as_json(value: Any) -> Any:
    """Returns dictionaries, sequences, arrays and numbers as JSON values; a text stands for what is not finite."""
    if isinstance(value, dict):
        return {str(key): as_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(x) for x in value]
    if hasattr(value, "tolist"):  # an array, or a number of numpy's
        return as_json(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def sealed(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the result with its check."""
    return result | {"check": _check(result)}


def current_result(
    folder: Path, measured: str, reported: str, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """Returns the result in a claim's folder if it is whole and of the code with those digests, or says why it is not."""
    if not os.path.lexists(folder / RESULT):
        return None
    found = _read(folder)
    if not found or found["check"] != _check(found):
        say("has a damaged result: left out until it is verified again")
    elif found["measured"] != measured:
        say("has a result of other code: left out until it is measured again")
    elif found["reported"] != reported:
        say("was judged or drawn by other code: left out until it is verified again")
    elif found["figure"] and found["figure"] != figure_digest(folder):
        say(f"has lost its {FIGURE}, or it is damaged: left out until it is verified again")
    else:
        return found
    return None


def figure_digest(folder: Path) -> str:
    """Returns the digest of the figure in a claim's folder; "" if there is none that can be read."""
    try:
        return _hash(read_bytes(folder / FIGURE, MOST_FIGURE))
    except OSError:
        return ""


def _read(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder, RESULT, Result)
    except RunFolderError:
        return {}


def _check(result: dict[str, Any]) -> str:
    rest = {key: value for key, value in result.items() if key != "check"}
    return _hash(json.dumps(rest, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def short(x: float | str) -> str:
    """Returns a number in four digits."""
    return x if isinstance(x, str) else f"{x:.4g}"


def in_brackets(number: dict[str, Any]) -> str:
    """Returns the ends of a number's interval in brackets, or a dash where it has no length."""
    low, high = number["interval"]
    return "–" if low == high else f"[{short(low)}, {short(high)}]"


def margin_in_words(number: dict[str, Any]) -> str:
    """Returns where a number must lie, in brackets, or "" where it decides nothing."""
    return "" if number["margin"] is None else "[{}, {}]".format(*map(short, number["margin"]))


def judged_in_words(number: dict[str, Any]) -> str:
    """Returns a number's verdict and, if there is something to say, why it is open, its range, and its last levels."""
    ends = "" if number["tail"] is None else "at the last levels [{}, {}]".format(*map(short, number["tail"]))
    said = [x for x in (number["undecided"], number["over"], ends) if x]
    return ": ".join([number["verdict"], *(["; ".join(said)] if said else [])])


HEAD = ("number", "measured", "95 % interval", "must lie in", "verdict")


def number_rows(numbers: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row of texts for each number, to stand under `HEAD`."""
    return [
        (name, short(x["center"]), in_brackets(x), margin_in_words(x), judged_in_words(x))
        for name, x in numbers.items()
    ]


def in_words(result: dict[str, Any]) -> str:
    """Returns the claim's verdict; that of a refuted assumption with the shares of instances that its numbers found."""
    judged = [x for x in result["numbers"].values() if x["verdict"] in ("refuted", "not refuted")]
    if result["verdict"] != "refuted":
        return result["verdict"]
    shares = [100 * x["center"] for x in judged]
    spread = f"{shares[0]:.0f}" if len(shares) == 1 else f"{min(shares):.0f} to {max(shares):.0f}"
    return f"refuted, on {spread} % of instances" + (f" ({len(shares)} numbers)" if len(shares) > 1 else "")


def cost_in_words(result: dict[str, Any]) -> str:
    """Returns what the measurement took, as in `1,000 transitions; 5 s`."""
    cost = ", ".join(f"{value:,.0f} {what}" for what, value in result["cost"].items())
    return f"{cost or 'no samples'}; {result['seconds']:,.0f} s"


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the claims as text, each with its numbers, of those that decide nothing only the first few."""
    return "\n\n".join(_format(name, result) for name, result in results.items())


def _format(name: str, result: dict[str, Any]) -> str:
    verdict = result["verdict"]
    lines = [f"{name}  {in_words(result).replace(verdict, verdict.upper(), 1)}", result["statement"]]
    lines.append(f"({result['source']}; {result['kind']})")
    lines.append(f"Predicted: {result['prediction']}")
    deciding = {name: x for name, x in result["numbers"].items() if x["margin"] is not None}
    others = {name: x for name, x in result["numbers"].items() if x["margin"] is None}
    room = SHARES if verdict.endswith("refuted") else REPORTED
    shown = deciding | dict(list(others.items())[:room])
    layout = f"{{:{max(map(len, shown), default=0)}s}}{{:>11s}}  {{:25s}}{{:19s}}{{}}"
    lines += [layout.format(*row) for row in (("", *HEAD[1:]), *number_rows(shown))]
    if len(others) > room:
        lines.append(f"… and {len(others) - room} more in summary.json")
    if verdict not in ("holds", "reported"):
        lines += [f"Note: {note}" for note in result["notes"]]
    return "\n  ".join([*lines, f"Cost: {cost_in_words(result)}"])
