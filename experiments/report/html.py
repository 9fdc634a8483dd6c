"""Pages of HTML that are complete in themselves, in one style: that of a run and that of claims.

What these functions return is `Markup`. A text that is none is escaped where it comes to stand in a page, so nobody else
escapes, and no text of a user's becomes a tag.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

STYLE = """
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
.headline { font-size: 1.1rem } .note { background: #fff4d6; padding: .5rem 1rem; border-left: 4px solid #e69f00 }
figure { margin: 1rem 0 } figcaption, .small { color: #555; font-size: .9rem } svg, img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem } pre { font-size: .75rem; line-height: 1.35; overflow-x: auto }
td, th { text-align: left; padding: .1rem 1.2rem .1rem 0; vertical-align: top; border-bottom: 1px solid #eee }
.facts { columns: 2 22rem } .facts td:last-child { overflow-wrap: anywhere } .facts tr { break-inside: avoid }
.holds { color: #00704a } .fails, .refuted { color: #b3261e }
"""
FONTS = "DejaVu Sans, Verdana, sans-serif"
SVG_SAVINGS = {  # inside tags; a third of the bytes
    r' id="[\w.]+_\d+"': "",  # matplotlib numbers groups from one in every figure; a page may hold an id only once
    r'font-family: [^;"]+;? ?': "",
    r' transform="rotate\(-0 [^)]*\)"': "",
    r' (?:d|x|y|transform)="[^"]+"': lambda place: re.sub(r"(\d\.\d\d)\d+", r"\1", place[0]),
    r' d="[^"]+"': lambda path: re.sub(r"\s*([A-Zz])\s*", r"\1", path[0]),
}


class Markup(str):
    """A piece of HTML, which stands in a page as it is."""


def page(title: str, *content: str) -> Markup:
    """A whole document: the title, which is its heading too, and what is below."""
    about = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">'
    head = f"<head>{about}{element('title', title)}\n<style>{STYLE}</style></head>"
    body = "\n".join([element("h1", title), *map(_safe, content)])
    return Markup(f'<!DOCTYPE html>\n<html lang="en">{head}\n<body>{body}\n</body></html>\n')


def element(name: str, *content: str, attributes: Mapping[str, str] | None = None) -> Markup:
    """An element around its content, as in `element("a", "text", attributes={"href": "#place"})`."""
    opening = " ".join([name, *(f'{key}="{escape(value)}"' for key, value in (attributes or {}).items())])
    return Markup(f"<{opening}>{''.join(map(_safe, content))}</{name}>")


def styled(name: str, style: str, *content: str) -> Markup:
    """An element of one of the classes of `STYLE`."""
    return element(name, *content, attributes={"class": style})


def section(title: str, *content: str, anchor: str = "") -> Markup:
    """A heading and what is below it; links to `#anchor` lead there."""
    heading = element("h2", title, attributes={"id": anchor} if anchor else None)
    return Markup("\n".join([heading, *map(_safe, content)]))


def items(sentences: Sequence[str]) -> Markup:
    """A list with an item a sentence."""
    return element("ul", *(element("li", sentence) for sentence in sentences))


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> Markup:
    """A table, with the names of its columns above the rows where they have names."""
    lines = [[element("th", cell) for cell in head]] if head else []
    lines += [[element("td", cell) for cell in row] for row in rows]
    return element("table", Markup("\n".join(element("tr", *line) for line in lines)))


def picture(image: Markup, caption: str) -> Markup:
    """An image, of `svg` or `png`, over its caption."""
    return element("figure", image, element("figcaption", caption))


def png(content: bytes, title: str) -> Markup:
    """The bytes of a PNG file as an image; the title is for readers who cannot see it."""
    data = base64.b64encode(content).decode()
    return Markup(f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">')


def svg(figure: Figure, title: str) -> Markup:
    """A figure of matplotlib as an image whose text stays text; the title, unique on its page, is for who cannot see
    it."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    image = file.getvalue()[file.getvalue().index("<svg") :]
    image = re.sub(r"<metadata>.*?</metadata>", "", image, flags=re.DOTALL)
    image = re.sub(r"<[^>]+>", _short_tag, re.sub(r">\s+<", "><", image))
    return Markup(image.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" font-family="{FONTS}" ', 1))


def _short_tag(tag: re.Match[str]) -> str:
    short = tag[0]
    for pattern, replacement in SVG_SAVINGS.items():
        short = re.sub(pattern, replacement, short)
    return short


def _safe(text: str) -> str:
    return text if isinstance(text, Markup) else escape(text)
