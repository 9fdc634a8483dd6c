"""What is reported of a claim: the JSON that its folder holds, whether it is of this code, and its words."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.claims.claim import Claim, Measurement, Number, judge, together
from experiments.files import RunFolderError, as_json, canonical_json, digest, digest_of, read_json
from experiments.report.summary import bracket, number

RESULT, FIGURE = "result.json", "figure.png"
REPORTED, SHARES = 6, 24  # numbers without a margin that the table shows, and of an assumption
HEAD = ("number", "measured", "95 % interval", "must lie in", "verdict")


def describe(claim: Claim, found: Measurement) -> dict[str, Any]:
    """Returns claim, numbers and verdicts as JSON values, where a text stands for an infinity."""
    numbers = dict.fromkeys(claim.margins, Number(*[math.nan] * 3, "not measured")) | found.numbers
    verdicts = judge(claim, numbers)
    judged = {}
    for name, (center, low, high, undecided, over, tail) in numbers.items():
        verdict, margin = verdicts.get(name, "reported"), claim.margins.get(name)
        judged[name] = {"center": center, "interval": [low, high], "margin": margin, "verdict": verdict}
        judged[name] |= {"undecided": undecided, "over": over, "tail": tail}
    about = {"statement": claim.statement, "source": claim.source, "prediction": claim.prediction}
    about |= {"kind": "exact" if claim.exact else "Monte Carlo", "verdict": together(verdicts), "numbers": judged}
    about |= {"cost": found.cost, "notes": found.notes, "tables": [table._asdict() for table in found.tables]}
    return as_json(about)


def sealed(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the result with its check, the digest of all else in it."""
    rest = {key: value for key, value in result.items() if key != "check"}
    return rest | {"check": digest(canonical_json(rest).encode())}


def current_result(
    folder: Path, measured: str, reported: str, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """Returns the result in a claim's folder if it is whole and of the code with those digests, or says why it is not."""
    if not os.path.lexists(folder / RESULT):
        return None
    try:
        found = read_json(folder, RESULT)
    except RunFolderError:
        found = {}
    if found.get("check") != sealed(found)["check"]:
        say("has a damaged result: left out until it is verified again")
    elif found.get("measured") != measured:
        say("has a result of other code: left out until it is measured again")
    elif found.get("reported") != reported:
        say("was judged or drawn by other code: left out until it is verified again")
    elif found["figure"] and found["figure"] != figure_digest(folder):
        say(f"has lost its {FIGURE}, or it is damaged: left out until it is verified again")
    else:
        return found
    return None


def figure_digest(folder: Path) -> str:
    """Returns the digest of the figure in a claim's folder; "" if there is none that can be read."""
    try:
        return digest_of(folder / FIGURE)
    except OSError:
        return ""


def in_brackets(judged: dict[str, Any]) -> str:
    """Returns the ends of a number's interval in brackets, or a dash where it has no length."""
    low, high = judged["interval"]
    return "–" if low == high else bracket([low, high])


def margin_in_words(judged: dict[str, Any]) -> str:
    """Returns where a number must lie, in brackets, or "" where it decides nothing."""
    return "" if judged["margin"] is None else bracket(judged["margin"])


def judged_in_words(judged: dict[str, Any]) -> str:
    """Returns a number's verdict and, if there is something to say, why it is open, its range, and its last levels."""
    ends = "" if judged["tail"] is None else f"at the last levels {bracket(judged['tail'])}"
    said = "; ".join(x for x in (judged["undecided"], judged["over"], ends) if x)
    return f"{judged['verdict']}: {said}" if said else judged["verdict"]


def number_rows(numbers: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a row of texts for each number, to stand under `HEAD`."""
    words = in_brackets, margin_in_words, judged_in_words
    return [(name, number(x["center"]), *(of(x) for of in words)) for name, x in numbers.items()]


def in_words(result: dict[str, Any]) -> str:
    """Returns the claim's verdict; that of a refuted assumption with the shares of instances that its numbers found."""
    if result["verdict"] != "refuted":
        return result["verdict"]
    shares = [100 * x["center"] for x in result["numbers"].values() if x["verdict"] in ("refuted", "not refuted")]
    if len(shares) == 1:
        return f"refuted, on {shares[0]:.0f} % of instances"
    return f"refuted, on {min(shares):.0f} to {max(shares):.0f} % of instances ({len(shares)} numbers)"


def cost_in_words(result: dict[str, Any]) -> str:
    """Returns what the measurement took, as in `1,000 transitions; 5 s`."""
    cost = ", ".join(f"{value:,.0f} {what}" for what, value in result["cost"].items())
    return f"{cost or 'no samples'}; {result['seconds']:,.0f} s"


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the claims as text, each with its numbers, of those that decide nothing only the first few."""
    return "\n\n".join(_format(name, result) for name, result in results.items())


def _format(name: str, result: dict[str, Any]) -> str:
    verdict, numbers = result["verdict"], result["numbers"]
    lines = [f"{name}  {in_words(result).replace(verdict, verdict.upper(), 1)}", result["statement"]]
    lines += [f"({result['source']}; {result['kind']})", f"Predicted: {result['prediction']}"]
    others = [key for key, x in numbers.items() if x["margin"] is None]
    hidden = others[SHARES if verdict.endswith("refuted") else REPORTED :]
    shown = {key: x for key, x in numbers.items() if key not in hidden}
    layout = f"{{:{max(map(len, shown), default=0)}s}}{{:>11s}}  {{:25s}}{{:19s}}{{}}"
    lines += [layout.format(*row) for row in (("", *HEAD[1:]), *number_rows(shown))]
    if hidden:
        lines.append(f"… and {len(hidden)} more in summary.json")
    if verdict not in ("holds", "reported"):
        lines += [f"Note: {note}" for note in result["notes"]]
    return "\n  ".join([*lines, f"Cost: {cost_in_words(result)}"])
