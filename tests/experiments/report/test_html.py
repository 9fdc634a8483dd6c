"""Pieces of HTML: texts are escaped once, tags stay, and images are small and well-formed."""

import base64
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import BASELINES, dataset, grid_tables
from matplotlib.text import Text

from experiments.report.figures import draw
from experiments.report.html import Markup, element, items, page, picture, png, section, styled, svg, table
from experiments.report.summary import COUNTS

SVG = "{http://www.w3.org/2000/svg}"


def test_a_text_is_escaped_once_and_what_is_html_already_never():
    word = styled("span", "holds", "1 < 2")
    assert word == '<span class="holds">1 &lt; 2</span>' and isinstance(word, Markup)
    assert element("p", "a & b: ", word) == '<p>a &amp; b: <span class="holds">1 &lt; 2</span></p>'
    assert "<th>&lt;name&gt;</th>" in table([["x", word]], ["<name>"])
    assert table([["x", word]]).count("&lt;") == 1
    assert items(["<b>"]) == "<ul><li>&lt;b&gt;</li></ul>"


def test_an_attribute_cannot_be_left_by_a_quote():
    link = element("a", "there", attributes={"href": '#"><script>'})
    assert link == '<a href="#&quot;&gt;&lt;script&gt;">there</a>'
    assert '"><script' not in png(b"", '"><script>')


def test_a_page_has_its_title_as_heading_and_sections_that_links_lead_to():
    whole = page("a < b", section("Part", element("p", "text"), anchor="part"), "bare & text")
    assert whole.startswith("<!DOCTYPE html>") and "<title>a &lt; b</title>" in whole and "<h1>a &lt; b</h1>" in whole
    assert '<h2 id="part">Part</h2>' in whole and "bare &amp; text" in whole
    assert "<h2>Part</h2>" in section("Part")


def test_a_png_stands_in_the_page_itself_over_its_caption():
    shown = picture(png(b"bytes", "a curve"), "rises & falls")
    data = base64.b64encode(b"bytes").decode()
    image = f'<img alt="a curve" src="data:image/png;base64,{data}">'
    assert shown == f"<figure>{image}<figcaption>rises &amp; falls</figcaption></figure>"


@pytest.fixture(scope="module")
def swept():
    tables = {name: x for name, x in grid_tables(2).items() if name != "grid"}
    return draw(dataset(sweep={"sigma": [0.01, 1.0], "kind": ["a", "b"]}), BASELINES, tables)


def test_an_svg_is_small_well_formed_and_holds_no_id_twice(swept):
    svgs = [svg(figure, f"<{name}>") for name, figure in swept.items()]
    assert all(ElementTree.fromstring(image).tag.endswith("svg") for image in svgs)
    assert max(map(len, svgs)) < 150_000
    ids = [i for image in svgs for i in re.findall(r'\bid="([^"]+)"', image)]
    assert ids and len(ids) == len(set(ids))


def test_the_texts_of_an_svg_are_those_of_the_figure():
    small = {"sigma": [0.001, 0.0025, 0.0075], "odd": ["1.2345 d", "b", "c"]}
    level = 1 + 0.001 * np.arange(12).reshape(3, 4, 1)
    for name, figure in draw(dataset(sweep=small, true_return=level), {"true_return": {"best": 1.0125}}).items():
        drawn = {text.get_text().strip() for text in figure.findobj(Text)}
        shown = [text.text.strip() for text in ElementTree.fromstring(svg(figure, name)).iter(f"{SVG}text")]
        assert shown and set(shown) <= drawn
        assert {text.get_text() for text in figure.legends[0].get_texts()} <= {*shown}


def test_long_runs_and_wide_sweeps_stay_below_the_size_limit():
    run = dataset(num_steps=400, sweep={"sigma": np.geomspace(0.1, 1, 14)}).drop_vars(COUNTS)
    assert len(svg(draw(run)["outcomes"], "outcomes")) < 150_000
