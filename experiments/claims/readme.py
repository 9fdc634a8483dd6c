"""What is published of the claims, beside them in the source tree: `results.json`, and the README that is made from it."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.claims import CLAIMS, TRIED
from experiments.claims.page import RULE
from experiments.claims.results import cost_in_words, in_brackets, in_words, judged_in_words, margin_in_words, short
from experiments.files import read_json, write_atomically

HERE = Path(__file__).parent
PUBLISHED = (
    "statement",
    "source",
    "prediction",
    "kind",
    "verdict",
    "numbers",
    "cost",
    "notes",
    "seconds",
    "measured",
    "reported",
)


def publish_results(folder: Path, home: Path = HERE) -> Path:
    """Writes `results.json` and `README.md` to `home`; the README.

    Results in the folder replace those that were published before; those of claims that it does not hold stay, and those of
    claims that are no longer in the list go.

    Args:
        folder: of results in full, with the `summary.json` that `experiments.claims.runner.verify` has written.
        home: where `results.json` may be.

    Raises:
        RunFolderError: what was published before cannot be read, or the files cannot be written.
    """
    new = {name: {key: result[key] for key in PUBLISHED} for name, result in read_json(folder, "summary.json").items()}
    published = read_json(home, "results.json", dict[str, dict], missing={}) | new
    results = {name: published[name] for name in CLAIMS if name in published}
    content = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(home, "results.json", content.encode())
    write_atomically(home, "README.md", readme(results).encode())
    return home / "README.md"


def readme(results: dict[str, dict[str, Any]]) -> str:
    """The text of `README.md` for published results: a table of verdicts, then a section for each claim."""
    rows = [
        (f"[{name}](#{_anchor(name)})", r["statement"], r["prediction"], _measured(r), f"**{in_words(r)}**")
        for name, r in results.items()
    ]
    parts = [
        "# Claims",
        "This text is written by `bilevel verify --publish` from `results.json`; it is not edited by hand. A claim is a "
        "file, such as `p1/bias.py`: what it computes, how that is judged, and what is drawn. `bilevel verify 'P1.*'` "
        "measures the claims of a paper, and writes their figures too.",
        RULE,
        _table(("claim", "said", "predicted", "measured", "verdict"), rows),
        *(_section(name, result) for name, result in results.items()),
        "## Tried, and no claim",
        "\n".join(f"- {_escaped(text)}" for text in TRIED),
    ]
    return "\n\n".join(parts) + "\n"


def _section(name: str, result: dict[str, Any]) -> str:
    numbers = [
        (number, short(x["center"]), in_brackets(x), margin_in_words(x), judged_in_words(x))
        for number, x in result["numbers"].items()
    ]
    parts = [
        f"## {name}",
        f"{_escaped(result['statement'])} ({_escaped(result['source'])}; {result['kind']})",
        f"Predicted: {_escaped(result['prediction'])}. Verdict: **{in_words(result)}**.",
        _table(("number", "measured", "95 % interval", "must lie in", "verdict"), numbers),
        *(["\n".join(f"- {_escaped(note)}" for note in result["notes"])] if result["notes"] else []),
        f"Cost: {_escaped(cost_in_words(result))}.",
    ]
    return "\n\n".join(parts)


def _measured(result: dict[str, Any]) -> str:
    """The numbers that decide, or where none does the first of them, each with its interval."""
    numbers = result["numbers"]
    deciding = [name for name, x in numbers.items() if x["verdict"] != "reported"] or [*numbers][:1]
    return "; ".join(f"{name}: {short(numbers[name]['center'])} {in_brackets(numbers[name])}" for name in deciding)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text in which stars, bars and the like stand for themselves; links and bold words of a cell stay."""
    if re.fullmatch(r"\[[\w.]+\]\(#.*\)|\*\*.*\*\*", text):
        return text
    return re.sub(r"([\\*_|<`\[\]])", r"\\\1", text)


def _anchor(name: str) -> str:
    """Of a section's heading, as it is made of it."""
    return re.sub(r"[^\w-]", "", name.lower())
