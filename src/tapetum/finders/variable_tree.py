"""Which kind of variable is it? One network that knows all classes of a tree, from the points of a light curve.

The network gives a number for each leaf; probabilities of leaves are their softmax, calibrated, and a class that holds
others has the sum of theirs: the tree is consistent by construction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tapetum.core.columns import floats_of
from tapetum.core.errors import InputError, ModelError
from tapetum.finders.config import FinderConfig
from tapetum.finders.taxonomy import load_taxonomy
from tapetum.lightcurves.curves import KEY
from tapetum.lightcurves.features import feature_table
from tapetum.lightcurves.periods.grid import GridRules
from tapetum.lightcurves.periods.ranking import RankRules
from tapetum.lightcurves.periods.search import PeriodRules, find_periods
from tapetum.models.flags import InputFlag
from tapetum.models.points import prepare_points, sine_powers, waves
from tapetum.models.runtime import Model
from tapetum.models.tables import prepare_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tapetum.finders.taxonomy import Taxonomy
    from tapetum.lightcurves.curves import LightCurves
    from tapetum.models.card import CardBody

    Values = NDArray[np.float64]

FINDER = "variable-tree"
DEFAULT_MODEL = "variables"
KEPT = ("object_id", "survey", "band", "ra", "dec")
SOURCE = "object_id"
LEAST_POINTS = 5
AT_ONCE = 256  # curves: their points in memory
SEARCH = PeriodRules(
    algorithms=("LS",),
    grid=GridRules(maximum=24.0, samples_per_peak=4.0),
    nested=None,
    ranking=RankRules(candidates=8),
)
"""How periods are searched for where none are given; the network learned from such periods."""
FAMILY = (1.0, 2.0, 0.5)
"""How many times the period its wave may be long."""
PERIODS = {"wave": 1.0, "double": 2.0}
"""Names of the periods that features are made at -> how many times the wave."""
LEAST_RATIO = 1e-3
WORD = "classification"


class Config(FinderConfig):
    """Settings of the finder."""

    coverage: Literal["0.90", "0.95", "0.99"] = Field(
        default="0.95", description="share of the stars whose true class is to be in `class_set`"
    )


def is_tree(card: CardBody) -> bool:
    """Whether a card is of a network for this finder."""
    return card.finder == FINDER


def wave_periods(curves: LightCurves, period: NDArray[Any]) -> Values:
    """Of a period, its half and its double, the one at which a sinusoid explains most [d].

    A search finds the orbit of an eclipsing star or half of it, as noise wants it; folded with the wave and with
    twice the wave such stars look alike.

    Parameters
    ----------
    curves
        With errors above 0.
    period : ndarray, shape (n_curves,)
        [d]; NaN where there is none, and then there is no wave.
    """
    trial = np.asarray(period, np.float64)[:, None] * np.array(FAMILY)
    with np.errstate(divide="ignore"):
        power = sine_powers(curves, 1 / trial)
    best = np.where(np.isfinite(power), power, -1.0).argmax(axis=1)
    return np.asarray(trial[np.arange(len(trial)), best])


def curve_features(curves: LightCurves, period: NDArray[Any], wave: NDArray[Any] | None = None) -> pa.Table:
    """What the network is told of light curves beside their points, one row each.

    The set `tapetum` of features, folded with the wave and with twice the wave, and comparisons of these.

    Parameters
    ----------
    curves
        Sorted by time.
    period : ndarray, shape (n_curves,)
        [d]; NaN where there is none.
    wave : ndarray, shape (n_curves,), optional
        As `wave_periods` gives it.
    """
    period = np.asarray(period, np.float64)
    wave = wave_periods(curves, period) if wave is None else wave
    table = feature_table(curves, ["tapetum"], {name: wave * times for name, times in PERIODS.items()})

    def column(name: str) -> Values:
        return floats_of(table[name])

    with np.errstate(divide="ignore", invalid="ignore"):
        frequency = np.array([0.5, 1.0, 1.5, 2.0, 3.0]) / wave[:, None]
        power = sine_powers(curves, frequency)
        left = (1 - column("fourier_power_double")) / (1 - column("fourier_power_wave"))
        more = {
            "log_wave": np.log10(wave),
            "log_period": np.log10(period),
            "log_period_ratio": np.log10(period / wave),
            "log_cycles": np.log10(column("baseline") / wave),
            "log_left_double": np.log10(np.clip(left, LEAST_RATIO, 1 / LEAST_RATIO)),
            "log_fold_gain_double": np.log10(
                column("fold_von_neumann_double") / column("fold_von_neumann_wave")
            ),
            "log_fold_gain": np.log10(column("fold_von_neumann_wave") / column("von_neumann")),
            "log_amplitude_ratio": np.log10(column("fourier_amplitude_wave") / column("amplitude")),
            "sine_power": power[:, 1],
            "sine_power_half_frequency": power[:, 0] / power[:, 1],
            "sine_power_3_halves": power[:, 2] / power[:, 1],
            "sine_power_double_frequency": power[:, 3] / power[:, 1],
            "sine_power_triple_frequency": power[:, 4] / power[:, 1],
        }
        more |= _shape(curves, wave)
    for name, values in more.items():
        values = np.where(np.isfinite(values), values, np.nan)
        table = table.append_column(name, pa.array(values, from_pandas=True))
    return table


def _shape(curves: LightCurves, wave: Values) -> dict[str, Values]:
    """Six harmonics of twice the wave, measured by the wave and turned so that it is faintest at phase zero."""
    fitted, left = waves(curves, 2 * wave, 6)
    size = np.abs(fitted[:, 1])
    turn = np.conj(fitted[:, 1] / size)
    relative = fitted / size[:, None]
    noise = left * np.sqrt(2 / np.maximum(curves.n_points, 1)) / size
    even, odd = relative[:, [3, 5]] * turn[:, None] ** np.array([2, 3]), relative[:, [0, 2, 4]]
    # an odd harmonic has two phases that differ by half a turn: only its square says something
    square = odd[:, 0] ** 2 * turn
    return {
        "shape_cos_2": even[:, 0].real,
        "shape_sin_2": np.abs(even[:, 0].imag),
        "shape_rise_2": even[:, 0].imag,
        "shape_cos_3": even[:, 1].real,
        "shape_rise_3": even[:, 1].imag,
        "odd_1": np.abs(odd[:, 0]),
        "odd_3": np.abs(odd[:, 1]),
        "odd_5": np.abs(odd[:, 2]),
        "odd_cos": square.real,
        "odd_sin": np.abs(square.imag),
        "log_wave_noise": np.log10(noise),
        "log_odd_signal": np.log10((np.abs(odd) ** 2).sum(axis=1) / (3 * noise**2)),
        "log_even_signal": np.log10((np.abs(even) ** 2).sum(axis=1) / (2 * noise**2)),
        "log_wave_size": np.log10(size),
    }


def searched_periods(curves: LightCurves) -> Values:
    """A period [d] for each curve, NaN where none is found."""
    found = find_periods(curves, SEARCH).table["period"]
    return floats_of(found)


def leaf_sums(leaves: Sequence[str], taxonomy: Taxonomy) -> tuple[list[str], NDArray[np.float64]]:
    """Classes that hold any of these leaves, in the order of the taxonomy, and which leaves are in each.

    Returns
    -------
    codes
        Of the classes, leaves among them.
    inside : ndarray, shape (n_leaves, n_codes)
        1 where the leaf is the class or within it.
    """
    lines = [(leaf, *taxonomy.ancestors(leaf)) for leaf in leaves]
    codes = [code for code in taxonomy.by_code if any(code in line for line in lines)]
    return codes, np.array([[float(code in line) for code in codes] for line in lines])


def softmax(logits: Values) -> Values:
    """Probabilities that add up to one in each row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def conformal_set(probability: Values, leaves: Sequence[str], threshold: float) -> list[list[str]]:
    """The leaves at least as probable as the threshold, and always the most probable one, best first."""
    order = np.argsort(-probability, axis=1, kind="stable")
    sets = []
    for row, places in zip(probability, order, strict=True):
        size = max(int((row >= threshold).sum()), 1)
        sets.append([leaves[place] for place in places[:size]])
    return sets


@dataclass(frozen=True)
class _Judged:
    leaf: Values  # probabilities (n, n_leaves), NaN where there is none
    period: Values


class VariableTree:
    """A loaded classifier.

    Attributes
    ----------
    model : Model
    taxonomy : Taxonomy
    leaves : tuple of str
        Codes, in the order of the network's output.
    codes : list of str
        Classes that a classification has columns for, those that hold others before them.
    """

    def __init__(self, model: Model, config: Config) -> None:
        card = model.card
        if not is_tree(card) or card.points is None or card.table is None:
            raise InputError(
                f"{model.origin}: {card.name} is no classifier over a tree of classes of light curves"
            )
        self.model, self.config = model, config
        self.taxonomy = load_taxonomy(str(card.training.recipe.get("taxonomy", "tapetum")))
        self.leaves = card.outputs[0].columns
        if unknown := [leaf for leaf in self.leaves if leaf not in self.taxonomy.by_code]:
            raise ModelError(f"{model.origin}: {unknown[0]} is no class of the taxonomy {self.taxonomy.name}")
        self.codes, self._inside = leaf_sums(self.leaves, self.taxonomy)

    @property
    def columns(self) -> dict[str, str]:
        """Every column of numbers of a classification -> what it holds, in order."""
        card = self.model.card
        by = f"probability by {card.name} {card.version}"
        words = {code: f"{self.taxonomy.of(code).label}: {by}" for code in self.codes}
        return words | {"class_probability": f"of `class`, {by}"}

    @property
    def threshold(self) -> float:
        """The least probability of a class in `class_set`."""
        name = f"conformal_{self.config.coverage}"
        if name not in self.model.card.thresholds:
            raise ModelError(f"{self.model.origin}: the card has no threshold {name}")
        return self.model.card.thresholds[name]

    def about(self) -> dict[str, Any]:
        """Model and settings of a classification, as its metadata keep them."""
        card = self.model.card
        return {
            "taxonomy": self.taxonomy.name,
            "models": {
                card.name: {
                    "model": card.name,
                    "version": card.version,
                    "sha256": card.onnx_sha256,
                    "classes": list(self.codes),
                    "leaves": list(self.leaves),
                    "algorithm": card.algorithm,
                }
            },
            "settings": self.config.model_dump(mode="json"),
        }

    def find(self, curves: LightCurves, table: pa.Table | None = None) -> pa.Table:
        """Classify light curves.

        Parameters
        ----------
        curves
            Clean and sorted by time, as `tapetum.lightcurves.clean.clean` gives them.
        table
            One row for each; its column ``period`` [d] is taken, null: none was found. Without the column, or
            without the table, periods are searched for, as `SEARCH` says.

        Returns
        -------
        pyarrow.Table
            One row for each curve, in order: `lc_id`, what else of `KEPT` is known, ``period``; a column for each of
            `codes`, of which the roots add up to one and children to their parent; ``class``, the most probable leaf,
            ``class_probability``, ``class_set``; ``flags`` and ``error``. Null where a curve cannot be judged.

        Raises
        ------
        InputError
            The table has other rows than there are curves.
        ModelError
            The network does not take what its card says.
        """
        judged = self.judge(curves, _given_period(curves, table))
        columns: dict[str, pa.Array | pa.ChunkedArray] = {KEY: curves.table[KEY]}
        columns |= {name: curves.table[name] for name in KEPT if name in curves.table.column_names}
        columns |= {
            name: pa.array(floats_of(columns[name]), from_pandas=True)
            for name in ("ra", "dec")
            if name in columns
        }
        columns["period"] = pa.array(judged.period, from_pandas=True)
        return self._told(columns, judged.leaf, curves.n_points < LEAST_POINTS)

    def judge(self, curves: LightCurves, period: Values | None = None) -> _Judged:
        """Probabilities of the leaves, and the periods that were used."""
        good = curves.n_points >= LEAST_POINTS
        leaf = np.full((len(curves), len(self.leaves)), np.nan)
        used = np.full(len(curves), np.nan)
        which = np.flatnonzero(good)
        for start in range(0, len(which), AT_ONCE):
            part = which[start : start + AT_ONCE]
            some = curves.take(part)
            used[part] = searched_periods(some) if period is None else period[part]
            leaf[part] = softmax(self.logits(some, used[part]) / self.temperature)
        return _Judged(leaf, used)

    @property
    def temperature(self) -> float:
        """What logits are divided by."""
        calibration = self.model.card.calibration
        return calibration.temperature if calibration.method == "temperature" else 1.0

    def logits(self, curves: LightCurves, period: Values) -> Values:
        """What the network says of curves at these periods, shape (n_curves, n_leaves)."""
        card = self.model.card
        assert card.table is not None
        assert card.points is not None
        wave = wave_periods(curves, period)
        rows = prepare_table(curve_features(curves, period, wave), card.table, card.name)
        inputs = {
            card.table.name: rows.values,
            card.points.name: prepare_points(curves, wave, card.points.length),
        }
        return self.model.scores(inputs)

    def sources(self, found: pa.Table) -> pa.Table:
        """One row per source: the mean of its light curves, which keeps the tree consistent.

        Parameters
        ----------
        found
            As `find` gives it, with `object_id`; rows without a source, or without an answer, are left out.

        Raises
        ------
        InputError
            There is no column `object_id`.
        """
        if SOURCE not in found.column_names:
            raise InputError(f"the light curves have no {SOURCE}: sources cannot be told apart")
        rows = found.filter(pc.and_(pc.is_valid(found[SOURCE]), pc.is_valid(found["class"])))
        names, first, owner = np.unique(
            np.array(rows[SOURCE].to_pylist(), dtype=str), return_index=True, return_inverse=True
        )
        count = np.bincount(owner, minlength=len(names))
        leaf = np.column_stack(
            [
                np.bincount(owner, rows[code].to_numpy(), minlength=len(names)) / np.maximum(count, 1)
                for code in self.leaves
            ]
        )
        order = np.argsort(first, kind="stable")
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            name: rows[name].take(pa.array(first[order]))
            for name in (SOURCE, "ra", "dec")
            if name in rows.column_names
        }
        columns["n_curves"] = pa.array(count[order])
        return self._told(columns, leaf[order], np.zeros(len(names), np.bool_))

    def _told(self, columns: dict[str, Any], leaf: Values, short: NDArray[np.bool_]) -> pa.Table:
        missing: NDArray[np.bool_] = np.asarray(~np.isfinite(leaf).all(axis=1), np.bool_)
        filled = np.where(missing[:, None], 1.0 / max(leaf.shape[1], 1), leaf)
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        sums = filled @ self._inside
        for place, code in enumerate(self.codes):
            columns[code] = pa.array(sums[:, place], mask=missing)
            fields.append(pa.field(code, pa.float64(), metadata={"description": self.columns[code]}))
        best = filled.argmax(axis=1) if len(filled) else np.zeros(0, np.int64)
        columns["class"] = pa.array([self.leaves[place] for place in best], pa.string(), mask=missing)
        columns["class_probability"] = pa.array(filled[np.arange(len(best)), best], mask=missing)
        sets = conformal_set(filled, self.leaves, self.threshold)
        columns["class_set"] = pa.array(
            [None if gone else each for gone, each in zip(missing.tolist(), sets, strict=True)],
            pa.list_(pa.string()),
        )
        columns["flags"] = pa.array(np.where(missing, int(InputFlag.MISSING_FEATURE), 0), pa.int32())
        errors = [
            f"fewer than {LEAST_POINTS} good points"
            if few
            else "the network gave no finite numbers"
            if gone
            else None
            for gone, few in zip(missing.tolist(), short.tolist(), strict=True)
        ]
        columns["error"] = pa.array(errors, pa.string())
        fields += [
            pa.field("class", pa.string()),
            pa.field("class_probability", pa.float64()),
            pa.field("class_set", pa.list_(pa.string())),
            pa.field("flags", pa.int32()),
            pa.field("error", pa.string()),
        ]
        metadata = {WORD.encode(): json.dumps(self.about()).encode()}
        return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, metadata=metadata))


def _given_period(curves: LightCurves, table: pa.Table | None) -> Values | None:
    if table is None or "period" not in table.column_names:
        return None
    if table.num_rows != len(curves):
        raise InputError(f"{table.num_rows} rows of periods for {len(curves)} light curves")
    values = floats_of(table["period"])
    values[~(values > 0)] = np.nan
    return values


def load(spec: str = DEFAULT_MODEL, config: Config | None = None) -> VariableTree:
    """Load a classifier by name, ``name@version`` or path.

    Raises
    ------
    ModelError
        No such model, or it is damaged; see `tapetum.models.runtime.Model.load`.
    InputError
        The model is of another kind.
    """
    config = config or Config()
    return VariableTree(Model.load(spec, verify=config.verify), config)
