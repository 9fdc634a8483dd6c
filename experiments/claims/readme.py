"""What is published of the claims in the source tree: `results.json` beside them, the README that is made from it, and the
table on the front page, the tree's own `README.md`."""

import json
import re
from pathlib import Path
from typing import Any

from experiments.claims import CLAIMS, TRIED
from experiments.claims.page import RULE
from experiments.claims.results import HEAD, cost_in_words, in_brackets, in_words, margin_in_words, number_rows
from experiments.files import RunFolderError, read_bytes, read_json, write_atomically
from experiments.report.summary import number

TREE, HOME = Path(__file__).parents[2], "experiments/claims"  # the source tree, and where the claims stand in it
FRONT, MOST_FRONT = "README.md", 2**20  # the front page, and bytes that it may have
BEGIN, END = "<!-- claims: written by `bilevel verify --publish` -->", "<!-- end of the claims -->"
CLAIM_HEAD = ("claim", "predicted", "measured, 95 % interval", "verdict")
UNPUBLISHED = {"tables", "quick", "figure", "check"}  # of a result, what is not published


def publish_results(folder: Path, tree: Path = TREE) -> Path:
    """Writes `results.json` and `README.md` beside the claims, and their table into the front page; returns the README.

    Results of the folder, from the `summary.json` that `experiments.claims.runner.verify` has written, replace those that
    were published before; those of claims that it does not hold stay, and those of claims that left the list go.

    Raises:
        RunFolderError: what was published before, or the front page, cannot be read, or the files cannot be written.
    """
    front = _front(tree)
    published = read_json(tree / HOME, "results.json", dict[str, dict], missing={})
    for name, result in read_json(folder, "summary.json").items():
        published[name] = {key: x for key, x in result.items() if key not in UNPUBLISHED}
    results = {name: published[name] for name in CLAIMS if name in published}
    content = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    write_atomically(tree / HOME, "results.json", content.encode())
    write_atomically(tree / HOME, "README.md", readme(results).encode())
    write_atomically(tree, FRONT, front_page(front, results).encode())
    return tree / HOME / "README.md"


def _front(tree: Path) -> str:
    """Returns the front page as it stands, in which a line each says where its table begins and ends."""
    try:
        text = read_bytes(tree / FRONT, MOST_FRONT).decode()
    except (OSError, ValueError) as error:
        why = f"cannot be read ({error}); required: the source tree, to publish in"
        raise RunFolderError(f"{tree / FRONT} {why}") from error
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        why = f"has no place for the claims; required: a line {BEGIN}, and below it {END}"
        raise RunFolderError(f"{tree / FRONT} {why}")
    return text


def front_page(text: str, results: dict[str, dict[str, Any]]) -> str:
    """Returns the front page's text with the table of those results that have a verdict in place of the one that it has."""
    judged = {name: result for name, result in results.items() if result["verdict"] != "reported"}
    rows = [(f"{name}: {r['statement']}", *_decided(r)) for name, r in judged.items()]
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return "\n\n".join([before + BEGIN, _table(CLAIM_HEAD, rows), END + after])


def readme(results: dict[str, dict[str, Any]]) -> str:
    """Returns the text of `README.md` for published results: a table of verdicts, then a section for each claim."""
    anchors = {name: re.sub(r"[^\w-]", "", name.lower()) for name in results}  # that readers of Markdown make
    rows = [(f"[{name}](#{anchors[name]})", r["statement"], *_decided(r)) for name, r in results.items()]
    parts = [
        "# Claims",
        "This text is written by `bilevel verify --publish` from `results.json`; it is not edited by hand. A claim is a "
        "file, such as `p1/bias.py`: what it computes, how that is judged, and what is drawn. `bilevel verify 'P1.*'` "
        "measures the claims of a paper, and writes their figures too.",
        RULE,
        _table((CLAIM_HEAD[0], "said", *CLAIM_HEAD[1:]), rows),
        *(_section(name, result) for name, result in results.items()),
        "## Tried, and no claim",
        "\n".join(f"- {_escaped(text)}" for text in TRIED),
    ]
    return "\n\n".join(parts) + "\n"


def _decided(result: dict[str, Any]) -> tuple[str, str, str]:
    """Returns the last cells of a claim's row: predicted, measured, verdict. One number stands for all of its section.

    It is the first that has the claim's verdict: of a claim that fails, one that fails. Predicted is its margin.
    """
    numbers, verdict = result["numbers"], result["verdict"]
    name, first = next(((name, x) for name, x in numbers.items() if x["verdict"] == verdict), ("nothing", None))
    others = sum(x["verdict"] != "reported" for x in numbers.values()) - (first is not None and verdict != "reported")
    value = f"{number(first['center'])} {in_brackets(first)}" if first else "–"
    more = f"; {others} more" if others else ""
    if first and first["margin"]:
        predicted, measured = f"{name}: {margin_in_words(first)}", value
    else:
        predicted, measured = "–" if verdict == "reported" else "assumed", f"{name}: {value}"
    return predicted, measured + more, f"**{in_words(result)}**"


def _section(name: str, result: dict[str, Any]) -> str:
    parts = [
        f"## {name}",
        f"{_escaped(result['statement'])} ({_escaped(result['source'])}; {result['kind']})",
        f"Predicted: {_escaped(result['prediction'])}. Verdict: **{in_words(result)}**.",
        _table(HEAD, number_rows(result["numbers"])),
        *(["\n".join(f"- {_escaped(note)}" for note in result["notes"])] if result["notes"] else []),
        f"Cost: {_escaped(cost_in_words(result))}.",
    ]
    return "\n\n".join(parts)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """Returns a text in which stars, bars and the like stand for themselves; links and bold words of a cell stay."""
    if re.fullmatch(r"\[[\w.]+\]\(#.*\)|\*\*.*\*\*", text):
        return text
    return re.sub(r"([\\*_|<`\[\]])", r"\\\1", text)
