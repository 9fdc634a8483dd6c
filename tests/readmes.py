"""The READMEs, and what is in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
READMES = [ROOT / folder / "README.md" for folder in ("", "bilevel", "envs", "experiments", "experiments/claims")]
TEXTS = {path: path.read_text() for path in READMES}


def blocks(language: str) -> list[str]:
    """Every fenced block of that language."""
    return [block for text in TEXTS.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def block(word: str) -> str:
    """The one Python block that holds a word."""
    (found,) = [text for text in blocks("python") if word in text]
    return found


def prose(text: str) -> str:
    """A text without its fenced blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)
