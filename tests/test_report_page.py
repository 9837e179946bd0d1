"""The report page: whole, escaped, self-contained, and as good with nothing to show as with much."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from tapetum.report.page import (
    Card,
    Cards,
    Column,
    Dot,
    Fact,
    Facts,
    Figure,
    Link,
    Page,
    Rows,
    Settings,
    format_cell,
    render_page,
    write_page,
)

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "<script>alert('\"&')</script>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><text>curve</text></svg>'
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Outline(HTMLParser):
    """Tags, attributes and text; complains about tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page() -> Page:
    card = Card(
        "a-1", EVIL, "probability 0.9", 0.9, [("science", "data:image/png;base64,AA==")], SVG, [("id", EVIL)]
    )
    columns = [Column("rank", "d"), Column("object"), Column(EVIL, ".2f", EVIL)]
    rows = [(1, EVIL, 0.5), (2, "b", None), (3, "c", math.nan)]
    return Page(
        EVIL,
        EVIL,
        [
            Facts([Fact("alerts", "3", EVIL)]),
            Cards("Best", [card], EVIL),
            Rows("Ranking", columns, rows, shown=2, targets=["a-1", None, None]),
            Figure("Distribution", SVG, EVIL),
            Rows("Rejected", columns, [], nothing="No packet was rejected."),
            Cards("Worst", [], nothing="None is bad."),
            Settings("Origin", [("made by", EVIL)], f"key = '{EVIL}'"),
        ],
        notice=EVIL,
        footer=EVIL,
    )


def test_words_stay_words(page: Page) -> None:
    html = render_page(page)
    outline = Outline(html)
    assert EVIL not in html
    assert len(outline.find("script")) == 1
    assert "alert(" in "".join(outline.words)
    assert html.count(SVG) == 2


def test_page_asks_nothing_of_anybody(page: Page) -> None:
    html = render_page(page)
    outline = Outline(html)
    addresses = [
        value for _, attributes in outline.tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert addresses
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    assert set(re.findall(r"https?://[^\"' <]+", html)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(" not in html
    policy = next(
        a["content"] for a in outline.find("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_every_inner_link_has_its_target(page: Page) -> None:
    outline = Outline(render_page(page))
    names = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(names) == len(set(names))
    links = [str(attributes["href"]).removeprefix("#") for attributes in outline.find("a")]
    assert "a-1" in links
    assert set(links) <= set(names)


def test_tables_hide_what_is_beyond_and_leave_gaps_empty(page: Page) -> None:
    outline = Outline(render_page(page))
    rows = outline.find("tr")[1:]
    assert [row.get("class") for row in rows] == [None, None, "later"]
    numbers = [cell["data-value"] for cell in outline.find("td") if "data-value" in cell]
    assert numbers[:2] == ["1", "0.5"]
    words = "".join(outline.words)
    assert "show all 3 rows" in words
    assert "No packet was rejected." in words
    assert "None is bad." in words


@pytest.mark.parametrize(
    ("value", "spec", "shown"),
    [
        (None, ".2f", ""),
        (math.nan, ".2f", ""),
        (1.2345, ".2f", "1.23"),
        (7, "d", "7"),
        ("ztfr", ".2f", "ztfr"),
    ],
)
def test_cells(value: str | float | None, spec: str, shown: str) -> None:
    assert format_cell(value, spec) == shown


def test_page_is_written_whole(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_page(path, page)
    assert path.read_text(encoding="utf-8") == render_page(page)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_links_and_dots_stand_among_words_and_are_escaped() -> None:
    text = (EVIL, Link("<there>", 'a "b"/<c>.html'), Dot("red;<"), " rest")
    sections = [Facts([], "Facts", text), Settings("Files", [("one", [Link("two", "two/three.fits")])])]
    html = render_page(Page("title", ["back: ", Link("home", "index.html")], sections))
    page = Outline(html)
    ways = {link["href"] for link in page.find("a")}
    assert {"a%20%22b%22/%3Cc%3E.html", "two/three.fits", "index.html"} <= ways
    assert {"<there>", "home", "two", " rest"} <= set(page.words)
    assert {"style": "color:red;<"} in page.find("span")
    assert EVIL not in html
    assert html.startswith("<!doctype html>")
