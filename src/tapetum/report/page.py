"""The one report page: a single HTML file with everything in it, and no request to anywhere.

A page is a title and a list of sections; each section is plain data, and the template knows how to show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from tapetum.core.files import whole_file

if TYPE_CHECKING:
    from pathlib import Path

Cell = str | int | float | None


@dataclass(frozen=True)
class Link:
    """Words that lead to a file beside the page."""

    words: str
    path: str


@dataclass(frozen=True)
class Dot:
    """A coloured dot, as legends of pictures have it."""

    colour: str


Text = str | Sequence[str | Link | Dot]
"""What is said above a section: words, among which links and dots may stand."""


@dataclass(frozen=True)
class Fact:
    """One number of the summary: what it counts, the number as people read it, and a few words about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """The summary numbers."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[Fact]
    title: str = ""
    text: Text = ""


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes
    ----------
    svg
        Text of `tapetum.report.svg`, put into the page as it is.
    """

    kind: ClassVar[str] = "figure"
    title: str
    svg: str
    text: Text = ""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and how its numbers are written (a format specification)."""

    name: str
    spec: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Rows:
    """A table that sorts by a click on a heading; rows beyond `shown` wait behind a button."""

    kind: ClassVar[str] = "rows"
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    text: Text = ""
    shown: int = 25
    nothing: str = "nothing"
    targets: Sequence[str | None] = field(default_factory=tuple)
    """Anchor on this page that the first cell of each row leads to."""


@dataclass(frozen=True)
class Card:
    """One object: its stamps, its light curve, and a few named values.

    Attributes
    ----------
    anchor
        Where tables can lead to.
    score
        Shown large, with a bar when `level` is given.
    level
        0 to 1.
    stamps
        (name, address) of each picture, the address as `tapetum.report.stamps.data_uri` gives it.
    curve
        SVG text, or empty.
    values
        (name, text) pairs.
    """

    anchor: str
    title: str
    score: str
    level: float | None
    stamps: Sequence[tuple[str, str]]
    curve: str = ""
    values: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Cards:
    """A gallery."""

    kind: ClassVar[str] = "cards"
    title: str
    cards: Sequence[Card]
    text: Text = ""
    nothing: str = "nothing"


@dataclass(frozen=True)
class Settings:
    """How the page came about: names and values, then the settings as text."""

    kind: ClassVar[str] = "settings"
    title: str
    values: Sequence[tuple[str, Text]]
    toml: str = ""
    text: Text = ""


Section = Facts | Figure | Rows | Cards | Settings


@dataclass(frozen=True)
class Page:
    """A whole report."""

    title: str
    subtitle: Text
    sections: Sequence[Section]
    notice: str = ""
    """Something the reader must know first, for instance that the data are simulated."""
    footer: str = ""


def render_page(page: Page) -> str:
    """The page as HTML text; every word is escaped, only SVG goes in as it is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tapetum.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    environment.filters["parts"] = parts_of
    return environment.get_template("page.html").render(page=page)


def parts_of(text: Text) -> Sequence[str | Link | Dot]:
    """Words, links and dots one after the other."""
    return (text,) if isinstance(text, str) else text


def write_page(path: Path, page: Page) -> None:
    """Write the page; the file appears whole."""
    text = render_page(page)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def format_cell(value: Cell, spec: str) -> str:
    """A table cell as people read it; nothing for a missing value."""
    if value is None or value != value:  # NaN is not equal to itself
        return ""
    return str(value) if isinstance(value, str) else format(value, spec)
