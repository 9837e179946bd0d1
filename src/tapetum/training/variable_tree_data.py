"""Labelled light curves for the classifier over a tree of classes: roles, worse copies, periods, features."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tapetum.core.errors import FormatError, InputError
from tapetum.core.files import whole_file
from tapetum.core.progress import no_progress
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.finders.variable_tree import LEAST_POINTS, SOURCE, curve_features, searched_periods, wave_periods
from tapetum.lightcurves.clean import CleaningRules, clean
from tapetum.lightcurves.curves import KEY, LightCurves
from tapetum.lightcurves.formats.opening import open_curves
from tapetum.models.card import TableContract, TableFeature
from tapetum.models.tables import gather_table
from tapetum.training.datasets import Key
from tapetum.training.split import LEARNING, USED_ROLES, require, role_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.core.progress import Progress
    from tapetum.training.split import Role
    from tapetum.training.variable_tree_recipe import VariableTreeRecipe

    Values = NDArray[np.float64]

log = logging.getLogger(__name__)
FEATURES, POINTS = "features", "points"
SEARCHED = 64  # curves whose periods are searched for at a time
LEAST_KEPT = 20  # points of a worse copy, where the curve has them


@dataclass(frozen=True)
class Examples:
    """Light curves of a role.

    Attributes
    ----------
    curves : LightCurves
    period : ndarray, shape (n,)
        Of the wave [d] (`tapetum.finders.variable_tree.wave_periods`); NaN where none is found.
    rows : ndarray of float32, shape (n, n_features)
        As the card's contract of the table gives them.
    inside : ndarray of float32, shape (n, n_leaves)
        1 for each leaf that the star may be in: one, or all within its class.
    weight : ndarray of float32, shape (n,)
    """

    curves: LightCurves
    period: Values
    rows: NDArray[np.float32]
    inside: NDArray[np.float32]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.period)

    @property
    def object_id(self) -> list[str]:
        """Star of each."""
        return list(self.curves.table[SOURCE].to_pylist())

    @property
    def sure(self) -> NDArray[np.bool_]:
        """Whose label is a leaf, shape (n,)."""
        return np.asarray(self.inside.sum(axis=1) == 1)

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> Examples:
        """Some of them."""
        return Examples(
            self.curves.take(which),
            self.period[which],
            self.rows[which],
            self.inside[which],
            self.weight[which],
        )


class CurveSource:
    """Labelled light curves, by role; stars are kept together, and copies of a star too.

    Parameters
    ----------
    recipe
        Labels, classes, features.
    paths
        Files of light curves in any format, with a column of labels.
    cache
        Folder for the periods, which take longest; None: they are not kept.
    answers
        Leaves, where they are given; None: those with enough stars to learn from.

    Raises
    ------
    InputError
        There is no file, or no column of labels.
    """

    def __init__(
        self,
        recipe: VariableTreeRecipe,
        paths: Sequence[Path],
        cache: Path | None = None,
        answers: Sequence[str] | None = None,
    ) -> None:
        if not paths:
            raise InputError("no labelled light curves: name a file with --table")
        self.recipe, self.cache = recipe, cache
        rules = recipe.labelled
        curves = open_curves([str(path) for path in paths]).read()
        self._require_columns(curves.table, paths)
        # every point counts here: what is close in time is left as it is
        curves = clean(curves, CleaningRules(min_points=rules.least_points, cadence_minutes=0.0)).curves
        labels = curves.table[rules.column].to_pylist()
        known = np.array([label in rules.labels for label in labels])
        self.curves = curves.take(known & ~leaking(curves.table))
        self.code = [rules.labels[label] for label in self.curves.table[rules.column].to_pylist()]
        self.role = np.array([role_of(name) for name in self.curves.table[SOURCE].to_pylist()], dtype=object)
        self.progress: Progress = no_progress
        self._answers = answers

    def _require_columns(self, table: pa.Table, paths: Sequence[Path]) -> None:
        for name in (self.recipe.labelled.column, SOURCE):
            if name not in table.column_names:
                raise InputError(
                    f"{paths[0]}: no column {name} beside the light curves: they have {', '.join(table.column_names)}"
                )

    @cached_property
    def leaves(self) -> tuple[str, ...]:
        """Classes that are answers: those without others in them that have enough stars to learn from."""
        if self._answers is not None:
            return tuple(self._answers)
        taxonomy = load_taxonomy(self.recipe.taxonomy)
        objects = self.curves.table[SOURCE].to_pylist()
        stars: dict[str, set[str]] = {}
        for code, name, role in zip(self.code, objects, self.role, strict=True):
            if role in LEARNING:
                stars.setdefault(code, set()).add(name)
        enough = {code for code, names in stars.items() if len(names) >= self.recipe.least}
        return tuple(code for code in taxonomy.leaves() if code in enough)

    def inside(self, codes: Sequence[str]) -> NDArray[np.float32]:
        """Leaves that stars of these classes may be in, shape (n, n_leaves).

        A star of a class too small to be an answer may be in any leaf of the class that holds it.
        """
        taxonomy = load_taxonomy(self.recipe.taxonomy)
        lines = {leaf: (leaf, *taxonomy.ancestors(leaf)) for leaf in self.leaves}
        found = {}
        for code in set(codes):
            # a class of none of whose wider classes anything is an answer may be anything
            found[code] = [1.0] * len(self.leaves)
            for wider in (code, *taxonomy.ancestors(code)):
                row = [float(wider in lines[leaf]) for leaf in self.leaves]
                if any(row):
                    found[code] = row
                    break
        return np.array([found[code] for code in codes], np.float32).reshape(len(codes), len(self.leaves))

    @cached_property
    def contract(self) -> TableContract:
        """The features that the classifier sees; it takes missing values as they are."""
        one = self.curves.take(np.arange(min(1, len(self.curves))))
        names = [name for name in curve_features(one, np.ones(len(one))).column_names if name != KEY]
        kept = [name for name in names if name not in self.recipe.without and not name.startswith("period_")]
        return TableContract(
            name=FEATURES,
            features=tuple(TableFeature(name=name, dtype="float32", missing="keep") for name in kept),
        )

    def examples(self, role: Role, variant: int = 0) -> Examples:
        """Curves of a role as they are, or a worse copy of each, numbered from 1."""
        which = np.flatnonzero(self.role == role)
        curves = self.curves.take(which)
        weight = self._weight(curves.table)
        if role in LEARNING:
            require(curves.table[SOURCE].to_pylist(), frozenset({role}))
        if variant:
            curves = worse_copies(curves, np.random.default_rng([self.recipe.seed, variant]))
            weight *= self.recipe.labelled.share
        period = self._periods(curves, f"{role}-{variant}")
        wave = wave_periods(curves, period)
        table = curve_features(curves, period, wave)
        rows = gather_table(table, self.contract, self.recipe.name).astype(np.float32)
        rows[~np.isfinite(rows)] = np.nan
        inside = self.inside([self.code[place] for place in which])
        return Examples(curves, wave, rows, inside, weight)

    def _weight(self, table: pa.Table) -> NDArray[np.float32]:
        weights = self.recipe.labelled.weights
        if "survey" not in table.column_names:
            return np.ones(table.num_rows, np.float32)
        return np.array(
            [weights.get(survey or "", 1.0) for survey in table["survey"].to_pylist()], np.float32
        )

    def _periods(self, curves: LightCurves, name: str) -> Values:
        digest = hashlib.sha256(
            curves.time.tobytes() + curves.mag.tobytes() + curves.offsets.tobytes()
        ).hexdigest()
        path = None if self.cache is None else self.cache / f"periods-{name}.npz"
        if path is not None and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as kept:
                    if str(kept["curves"]) == digest:
                        return np.asarray(kept["period"], np.float64)
            except (OSError, ValueError, KeyError) as problem:
                raise FormatError(f"{path}: cannot be read ({problem}); delete it to start again") from None
        parts = []
        for start in range(0, len(curves), SEARCHED):
            parts.append(searched_periods(curves.take(np.arange(start, min(start + SEARCHED, len(curves))))))
            self.progress(min(start + SEARCHED, len(curves)), len(curves))
        period = np.concatenate([np.zeros(0), *parts])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part, part.open("wb") as handle:
                np.savez(handle, allow_pickle=False, curves=np.array(digest), period=period)
        return period

    def keys(self, role: Role, epochs: int) -> list[Key]:
        """Every example of a role; the same in all epochs.

        Its number tells the light curve, its points and the class: what was cleaned anew is another example.
        """
        del epochs
        if role not in USED_ROLES:
            return []
        which = np.flatnonzero(self.role == role)
        table = self.curves.table.take(pa.array(which))
        origins = table["survey"].to_pylist() if "survey" in table.column_names else ["labelled"] * len(which)
        return [
            Key(str(origin), _number(f"{row}:{self.code[place]}:".encode() + self._points(place)), name)
            for origin, row, name, place in zip(
                origins, table[KEY].to_pylist(), table[SOURCE].to_pylist(), which.tolist(), strict=True
            )
        ]

    def _points(self, place: int) -> bytes:
        """What was observed of a light curve, as bytes."""
        curves = self.curves
        points = slice(curves.offsets[place], curves.offsets[place + 1])
        return b"".join(part[points].tobytes() for part in (curves.time, curves.mag, curves.magerr))


def leaking(table: pa.Table) -> NDArray[np.bool_]:
    """Curves to learn from of a star that another survey observed too and whose other curve is not to be learned from.

    Column ``duplicate_of``: `lc_id` of the same star in another data set.
    """
    out = np.zeros(table.num_rows, np.bool_)
    if "duplicate_of" not in table.column_names:
        return out
    ids = table[KEY].to_pylist()
    role = dict(zip(ids, map(role_of, table[SOURCE].to_pylist()), strict=True))
    place = {name: number for number, name in enumerate(ids)}
    for name, other in zip(ids, table["duplicate_of"].to_pylist(), strict=True):
        if not other or other not in role:
            continue
        for mine, theirs in ((name, other), (other, name)):
            if role[mine] != role[theirs] and role[mine] in LEARNING:
                out[place[mine]] = True
    return out


def worse_copies(curves: LightCurves, rng: np.random.Generator) -> LightCurves:
    """Each curve as a survey with fewer visits, a shorter life or larger errors would have it."""
    time, mag, magerr = [], [], []
    for t, m, e in curves:
        n = t.size
        kept = round(float(np.exp(rng.uniform(np.log(min(LEAST_KEPT, n)), np.log(n)))))
        kept = max(kept, min(LEAST_POINTS, n))
        if rng.random() < 0.3:  # a part of the time
            first = int(rng.integers(0, n - kept + 1))
            which = np.arange(first, first + kept)
        else:
            which = np.sort(rng.choice(n, kept, replace=False))
        factor = float(np.exp(abs(rng.normal(0, 0.5)))) if rng.random() < 0.6 else 1.0
        noise = rng.normal(size=kept) * e[which] * np.sqrt(factor**2 - 1)
        time.append(t[which])
        mag.append(m[which] + noise)
        magerr.append(e[which] * factor * np.exp(rng.normal(0, 0.15)))
    return LightCurves.of_lists(time, mag, magerr, curves.table)


def star_folds(examples: Examples, count: int, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to learn from and rows to judge by, for each fold; a star is in one fold, and its class in all of them."""
    names, first, owner = np.unique(
        np.asarray(examples.object_id, str), return_index=True, return_inverse=True
    )
    rng = np.random.default_rng([seed, 3])
    shuffled = rng.permutation(len(names))
    kind = examples.inside[first].argmax(axis=1)
    dealt = shuffled[np.argsort(kind[shuffled], kind="stable")]
    fold = np.empty(len(names), np.int64)
    fold[dealt] = np.arange(len(names)) % count
    of_row = fold[owner]
    return [(np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)) for k in range(count)]


def _number(content: bytes) -> int:
    return int(hashlib.sha1(content, usedforsecurity=False).hexdigest()[:15], 16)
