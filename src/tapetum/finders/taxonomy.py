"""The classes that variable sources are sorted into: names, short codes and hierarchy, as data.

`scope` is the taxonomy of SCoPe; any other one is a TOML file of the same form: ``name`` and a list of ``[[class]]``
tables with ``code``, ``label``, ``view``, and where they apply ``parent``, ``opposite`` and ``weighted``.
"""

from __future__ import annotations

import tomllib
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tapetum.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = "taxonomies"


class VariableClass(BaseModel):
    """One class.

    Attributes
    ----------
    code
        Short name, as in ``models train variables-<code>`` and in the columns of a classification.
    label
        Full name, as in training sets.
    view
        Whether it says how a light curve looks, or what the source is.
    parent
        Code of the class that holds every member of this one.
    opposite
        Code of the class whose probability is one minus this one's.
    weighted
        Whether examples of it weigh as much as all others together in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    code: str = Field(pattern=r"^[a-z][a-z0-9]*$")
    label: str = Field(min_length=1)
    view: Literal["phenomenological", "ontological"]
    parent: str | None = None
    opposite: str | None = None
    weighted: bool = False


class Taxonomy(BaseModel):
    """Classes and how they hang together; a parent stands before its children."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))
    name: str
    classes: tuple[VariableClass, ...] = Field(alias="class", min_length=1)

    @model_validator(mode="after")
    def _hang_together(self) -> Self:
        before: dict[str, VariableClass] = {}
        for entry in self.classes:
            if entry.code in before:
                raise ValueError(f"the class {entry.code} is there twice")
            if entry.parent is not None and entry.parent not in before:
                raise ValueError(f"{entry.parent}, the parent of {entry.code}, must stand before it")
            if entry.parent is not None and before[entry.parent].view != entry.view:
                raise ValueError(f"{entry.code} and its parent {entry.parent} are of different views")
            before[entry.code] = entry
        for entry in self.classes:
            if entry.opposite is not None and entry.opposite not in before:
                raise ValueError(f"{entry.opposite}, the opposite of {entry.code}, is no class")
        return self

    @cached_property
    def by_code(self) -> Mapping[str, VariableClass]:
        """Classes by their short names."""
        return {entry.code: entry for entry in self.classes}

    def of(self, name: str) -> VariableClass:
        """A class by code or label.

        Raises
        ------
        UsageError
            There is none of this name.
        """
        found = self.by_code.get(name) or next((c for c in self.classes if c.label == name), None)
        if found is None:
            raise UsageError(
                f"{name!r} is no class of {self.name}; its classes are {', '.join(self.by_code)}"
            )
        return found

    def ancestors(self, code: str) -> tuple[str, ...]:
        """Codes from the parent up to the root."""
        parent = self.of(code).parent
        return () if parent is None else (parent, *self.ancestors(parent))

    def children(self, code: str | None) -> tuple[str, ...]:
        """Codes of the classes directly below one, or of the roots."""
        return tuple(entry.code for entry in self.classes if entry.parent == code)

    def leaves(self) -> tuple[str, ...]:
        """Codes of the classes that have none below them."""
        parents = {entry.parent for entry in self.classes}
        return tuple(entry.code for entry in self.classes if entry.code not in parents)


def load_taxonomy(name: str | Path = "scope") -> Taxonomy:
    """The taxonomy of this name in the package, or of a TOML file.

    Raises
    ------
    InputError
        The file is missing or does not describe a taxonomy.
    """
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return _parsed(path.read_text(encoding="utf-8"), str(path))
        except OSError as problem:
            raise InputError(
                f"{path}: {problem.strerror or problem}; name a taxonomy file, or scope"
            ) from None
    return _shipped(str(name))


@cache
def _shipped(name: str) -> Taxonomy:
    folder = files("tapetum.finders") / FOLDER
    known = sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )
    if name not in known:
        raise InputError(f"{name!r} is no taxonomy: name a file that ends in .toml, or {', '.join(known)}")
    return _parsed((folder / f"{name}.toml").read_text(encoding="utf-8"), name)


def _parsed(text: str, name: str) -> Taxonomy:
    try:
        return Taxonomy.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as problem:
        raise InputError(f"{name}: not TOML: {problem}") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{name}: {place or 'taxonomy'}: {first['msg']}") from None
