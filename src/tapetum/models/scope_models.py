"""Bring in classifiers that SCoPe trained: a Keras network (``.h5``) or boosted trees (``.json`` with ``.params``).

The files hold the network or the trees alone. Which features they take, how these are scaled and what replaces a
missing one stood in SCoPe's ``config.yaml`` and its training set, so it is asked for here and frozen in the card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import ValidationError

from tapetum.core.errors import FormatError, InputError
from tapetum.core.files import sha256_of
from tapetum.lightcurves.impute import Imputer, Strategy, described_strategies
from tapetum.models.card import (
    FLOAT32_MAX,
    CardBody,
    ClassSpec,
    DmdtContract,
    Golden,
    ModelCard,
    Output,
    Source,
    StoredArray,
    SyntheticDmdt,
    TableContract,
    TableFeature,
    Training,
)
from tapetum.models.feature_statistics import read_text, statistics_in, statistics_of
from tapetum.models.golden import golden_inputs, uniforms
from tapetum.models.installing import Imported, complete_card, install
from tapetum.models.keras_h5 import read_keras_h5
from tapetum.models.keras_onnx import FEATURE_INPUT, IMAGE_INPUT, SCORE_OUTPUT, to_onnx
from tapetum.models.runtime import Model
from tapetum.models.trees_onnx import BOOSTER, INPUT, LEAF, OUTPUT, Trees, read_trees, trees_to_onnx

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from tapetum.models.keras_h5 import KerasNet

Algorithm = Literal["dnn", "xgb"]
View = Literal["phenomenological", "ontological"]
Scaling = Literal["min_max", "median_std", "none"]

DESCRIBED_THRESHOLD = 0.7  # above which SCoPe gives a class
PERIOD_SUFFIX = "ELS_ECE_EAOV"  # of SCoPe's own configuration
MICRO_BATCH = 256
GOLDEN_SEED, N_GOLDEN = 20261, 8
N_BINS = 26
PERIODIC = (
    "f1_BIC", "f1_a", "f1_amp", "f1_b", "f1_phi0", "f1_power", *(f"f1_rel{kind}{n}" for kind in ("amp", "phi")
    for n in range(1, 5)), "period", "significance",
)  # fmt: skip
_PHENOMENOLOGICAL = (
    "ad", "chi2red", *PERIODIC[:-2], "i60r", "i70r", "i80r", "i90r", "inv_vonneumannratio", "iqr", "median",
    "median_abs_dev", "norm_excess_var", "norm_peak_to_peak_amp", "roms", "skew", "smallkurt", "stetson_j",
    "stetson_k", "sw", "welch_i", "wmean", "wstd",
)  # fmt: skip
_CATALOGUES = (
    *(f"AllWISE__{name}" for name in ("w1mpro", "w1sigmpro", "w2mpro", "w2sigmpro", "w3mpro", "w4mpro")),
    *(
        f"Gaia_EDR3__{name}"
        for name in (
            "parallax", "parallax_error", "phot_bp_mean_mag", "phot_bp_rp_excess_factor", "phot_g_mean_mag",
            "phot_rp_mean_mag",
        )
    ),
    *(f"PS1_DR1__{band}MeanPSFMag{error}" for band in "grizy" for error in ("", "Err")),
)  # fmt: skip
_ONTOLOGICAL = (*_PHENOMENOLOGICAL, "mean_ztf_alert_braai", "n_ztf_alerts", "period", "significance")
DESCRIBED: dict[View, tuple[str, ...]] = {
    # the order in SCoPe 0.9.5 is that of the bytes of the names, first the light curve's, then the catalogues'
    "phenomenological": tuple(sorted(_PHENOMENOLOGICAL)),
    "ontological": (*sorted(_ONTOLOGICAL), *sorted(_CATALOGUES)),
}
"""Features of a classifier, in the order of its input, where nothing else is said."""


@dataclass(frozen=True)
class ScopeContract:
    """What the files do not say.

    Attributes
    ----------
    code, label
        Of the class.
    view
        Which of the described feature lists is meant where `features` is empty.
    features
        In the order of the input, without the name of the period's algorithm.
    period_suffix
        That name.
    scaling
        How features were scaled.
    statistics
        Column -> its ``min``, ``max``, ``median``, ``mean`` and ``std`` in the training set; a column that is not in
        it was not scaled, as in SCoPe.
    strategies
        Feature -> what replaces a missing value, instead of the described rule.
    version, licence
        Of the model.
    """

    code: str
    label: str
    view: View
    features: tuple[str, ...] = ()
    period_suffix: str = PERIOD_SUFFIX
    scaling: Scaling = "min_max"
    statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    version: str = "1.0.0"
    licence: str = "unknown"


@dataclass(frozen=True)
class ScopeConfig:
    """What a ``config.yaml`` of SCoPe says of one class.

    Attributes
    ----------
    features
        In order, without the name of the period's algorithm.
    period_suffix
        That name; empty where it has none.
    statistics
        As in `ScopeContract`; empty where it has none.
    strategies
        Of features with a rule for missing values; where it is ``None``, the row is dropped, as in SCoPe.
    """

    features: tuple[str, ...]
    period_suffix: str
    statistics: Mapping[str, Mapping[str, float]]
    strategies: Mapping[str, Strategy]


def read_scope_config(path: Path, code: str, view: View) -> ScopeConfig:
    """Read what a SCoPe configuration says of a class.

    Parameters
    ----------
    path
        YAML file.
    code
        Tag of the class; one that the file does not list has the features of `view`.
    view
        Of the class.

    Raises
    ------
    FormatError
        The file cannot be read, or is no such configuration.
    """
    # astropy needs the library for ECSV, so it is there
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(read_text(path))
        of_class = content.get("training", {}).get("classes", {}).get(code, {})
        listed = content["features"][of_class.get("features", view)]
        included = {name: entry for name, entry in listed.items() if entry["include"]}
        suffix = content["features"].get("info", {}).get("period_suffix")
        # rules for missing values stand in the longer list only
        rules = {**content["features"].get("ontological", {}), **included}
        strategies = {
            name: _strategy(rules[name]["impute_strategy"])
            for name in included
            if "impute_strategy" in rules[name]
        }
        statistics = statistics_in(content.get("feature_stats") or {}, path)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as problem:
        first = str(problem).partition("\n")[0]
        raise FormatError(
            f"{path}: not a configuration of SCoPe: {type(problem).__name__}: {first}"
        ) from None
    no_suffix = suffix is None or str(suffix) == "None"
    return ScopeConfig(tuple(included), "" if no_suffix else str(suffix), statistics, strategies)


def _strategy(word: object) -> Strategy:
    """What a configuration calls a rule; None is that of all features without one."""
    text = str(word).lower()
    return Strategy.DROP if text in ("none", "null") else Strategy(text)


def import_scope(
    path: Path,
    name: str,
    algorithm: Algorithm,
    contract: ScopeContract,
    models: Path,
    today: datetime.date,
    *,
    training_set: pa.Table | None = None,
    read: Callable[[Path], KerasNet] = read_keras_h5,
) -> Imported:
    """Import a classifier of SCoPe.

    Parameters
    ----------
    path
        ``.h5``, or the ``.json`` of trees; their ``.params``, if it lies beside, must fit.
    name
        Of the model from now on.
    algorithm
        Which of the two.
    contract
        What the files do not say.
    models
        Folder of imported models.
    today
        Date for the card.
    training_set
        Feature table that the model was trained on: its statistics are taken where `contract` has none, and missing
        values are replaced by what it has. Without it missing magnitudes and parallaxes become their median.
    read
        Reads a Keras file.

    Raises
    ------
    InputError
        The files cannot be used, the contract is incomplete or does not fit them, or this version was imported from
        another file.
    """
    if contract.scaling != "none" and not contract.statistics and training_set is None:
        raise InputError(
            f"{path}: the file does not say how its features were scaled; give SCoPe's configuration "
            "(--scope-config), statistics (--feature-stats), the training set (--training-set), or --scaling none"
        )
    found = _read_network(path, read) if algorithm == "dnn" else _read_boosted(path, contract)
    features = found.features or contract.features or DESCRIBED[contract.view]
    if len(features) != found.n_features:
        raise InputError(
            f"{path}: the model takes {found.n_features} features, the list has {len(features)}; give the list that it "
            "was trained with (--scope-config, --features)"
        )
    table = _table_contract(features, contract, training_set, found.input_name)
    inputs = (table,) if not found.with_dmdt else (table, DmdtContract(name=IMAGE_INPUT))
    body = _body(path, name, algorithm, contract, inputs, found, today)
    golden = _golden(body, found.onnx)
    card = complete_card(body.model_copy(update={"golden": golden}), found.onnx)
    return install(card, found.onnx, models, path, beside=found.beside)


@dataclass(frozen=True)
class _Found:
    """A model as ONNX, and what its file says of it."""

    onnx: bytes
    n_features: int
    input_name: str
    output_name: str
    with_dmdt: bool
    features: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, bytes] = field(default_factory=dict)  # files for the folder of the model


def _read_network(path: Path, read: Callable[[Path], KerasNet]) -> _Found:
    net = read(path)
    try:
        translation = to_onnx(net)
    except FormatError as problem:
        raise FormatError(f"{path}: {problem}") from None
    if translation.n_features is None or translation.image_shape not in (None, (N_BINS, N_BINS, 1)):
        raise FormatError(
            f"{path}: a network of SCoPe takes features and {N_BINS} x {N_BINS} histograms, this one takes "
            f"{translation.n_features} features and an image of {translation.image_shape}"
        )
    if translation.output_shape != (1,) or translation.activation != "sigmoid":
        raise FormatError(
            f"{path}: the output has the shape {translation.output_shape} and ends with {translation.activation}; a "
            "classifier for one class ends with a sigmoid"
        )
    return _Found(
        translation.onnx,
        translation.n_features,
        FEATURE_INPUT,
        SCORE_OUTPUT,
        with_dmdt=translation.image_shape is not None,
    )


def _read_boosted(path: Path, contract: ScopeContract) -> _Found:
    text = read_text(path)
    try:
        trees = read_trees(text, str(path))
    except RecursionError:
        raise FormatError(f"{path}: not a model of xgboost as JSON: nested too deeply") from None
    for number, tree in enumerate(trees.trees):
        if (problem := _wrong_with(tree, trees.n_features)) is not None:
            raise FormatError(f"{path}: tree {number}: {problem}")
    return _Found(
        trees_to_onnx(trees),
        trees.n_features,
        INPUT,
        OUTPUT,
        with_dmdt=False,
        features=_bare(trees.features, contract, path),
        recipe=_parameters(path.with_suffix(".params"), trees),
        beside={BOOSTER: text.encode()},  # what a training can go on from
    )


def _wrong_with(tree: Mapping[str, Any], n_features: int) -> str | None:
    """Why this is no tree; None where it is one. What follows trusts its numbers."""
    names = ("left_children", "right_children", "split_indices", "split_conditions", "default_left")
    try:
        left, right, feature, value, default = (np.array(tree[name], np.float64) for name in names)
    except (KeyError, TypeError, ValueError) as problem:
        return f"{type(problem).__name__}: {problem}"
    n = left.size
    if not n or any(column.shape != (n,) for column in (left, right, feature, value, default)):
        return "its lists differ in length"
    inner = left != LEAF
    if ((right != LEAF) != inner).any():
        return "a node has one child"
    children = np.concatenate([left[inner], right[inner]])
    if not np.array_equal(np.sort(children), np.arange(1, n)):
        return "its nodes do not hang together"
    if not np.isin(feature[inner], np.arange(n_features)).all():
        return f"it asks for a feature beyond the {n_features}"
    if not (np.abs(value) <= FLOAT32_MAX).all():
        return "a number in it is not finite"
    return None


def _bare(columns: Sequence[str], contract: ScopeContract, path: Path) -> tuple[str, ...]:
    """Features of columns that the trees were trained on, without the name of the period's algorithm.

    Raises
    ------
    InputError
        They are not those that were said.
    """
    end = f"_{contract.period_suffix}"
    bare = tuple(
        name.removesuffix(end) if name.endswith(end) and name.removesuffix(end) in PERIODIC else name
        for name in columns
    )
    folded = [name for name in bare if name.startswith(tuple(f"{known}_" for known in PERIODIC[:2]))]
    if contract.period_suffix and folded:
        raise InputError(
            f"{path}: the trees take {folded[0]}, whose period is not that of {contract.period_suffix}; give "
            "--period-suffix"
        )
    if bare and contract.features and bare != contract.features:
        raise InputError(f"{path}: the trees name other features than the list: {' '.join(bare[:10])} ...")
    return bare


def _parameters(path: Path, trees: Trees) -> dict[str, Any]:
    """What ``.params`` says of the training, if the file is there: the booster's configuration.

    Raises
    ------
    FormatError
        It is something else, or belongs to other trees.
    """
    if not path.exists():
        return {}
    try:
        learner = json.loads(read_text(path))["learner"]
        model, objective = learner["learner_model_param"], learner["objective"]["name"]
        n_features = int(model["num_feature"])
        found = learner["gradient_booster"].get("tree_train_param", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise FormatError(
            f"{path}: not the configuration of boosted trees: {type(problem).__name__}: {problem}"
        ) from None
    # the file may leave the number of features at 0
    if n_features not in (0, trees.n_features):
        raise FormatError(
            f"{path}: of trees with {n_features} features, while those beside it take {trees.n_features}; "
            "the two files do not belong together"
        )
    known = (
        "eta",
        "max_depth",
        "min_child_weight",
        "subsample",
        "colsample_bytree",
        "gamma",
        "lambda",
        "alpha",
    )
    return {"objective": objective, **{key: str(found[key]) for key in known if key in found}}


def _table_contract(
    features: Sequence[str], contract: ScopeContract, training_set: pa.Table | None, input_name: str
) -> TableContract:
    """List, scaling and rules for missing values, frozen."""
    suffix = contract.period_suffix
    columns = {name: f"{name}_{suffix}" if suffix and name in PERIODIC else name for name in features}
    statistics = contract.statistics
    if not statistics and training_set is not None:
        statistics = statistics_of(training_set, list(columns.values()))
    rules = {**described_strategies(features), **contract.strategies}
    middles: dict[str, dict[str, float]] = {
        which: {name: values[which] for name, values in statistics.items() if which in values}
        for which in ("median", "mean")
    }
    donors: StoredArray | None = None
    if training_set is not None:
        fitted = Imputer.fit(training_set, {columns[name]: rules[name] for name in features})
        middles["median"] |= fitted.medians
        middles["mean"] |= fitted.means
        donors = StoredArray.pack(fitted.donors) if fitted.regressed else None
    entries = []
    for name in features:
        known = {which: values[columns[name]] for which, values in middles.items() if columns[name] in values}
        rule = _rule(rules[name], known, donors)
        entries.append(_feature(name, rule, known, columns, statistics, contract))
    return TableContract(
        name=input_name,
        features=tuple(entries),
        period_suffix=suffix,
        scaling=contract.scaling,
        donors=donors if any(entry.missing == "regress" for entry in entries) else None,
    )


def _rule(rule: Strategy, known: Mapping[str, float], donors: StoredArray | None) -> Strategy:
    """What can be kept of a rule: without a training set there are no neighbours, without statistics no median."""
    if rule is Strategy.REGRESS and donors is None:
        rule = Strategy.MEDIAN
    needed = {Strategy.MEDIAN: "median", Strategy.MEAN: "mean"}.get(rule)
    return Strategy.DROP if needed is not None and needed not in known else rule


def _feature(
    name: str,
    rule: Strategy,
    known: Mapping[str, float],
    columns: Mapping[str, str],
    statistics: Mapping[str, Mapping[str, float]],
    contract: ScopeContract,
) -> TableFeature:
    centre = width = None
    values = statistics.get(columns[name])
    if contract.scaling != "none" and values is not None and values.get("std") != 0:
        try:
            centre, width = (
                (values["min"], values["max"] - values["min"])
                if contract.scaling == "min_max"
                else (values["median"], values["std"])
            )
        except KeyError as problem:
            raise InputError(f"the statistics of {columns[name]} lack {problem}") from None
    needed = {Strategy.MEDIAN: "median", Strategy.MEAN: "mean", Strategy.REGRESS: "mean"}.get(rule)
    middle = {} if needed is None else {needed: known[needed]}
    return TableFeature(
        name=name,
        periodic=columns[name] != name,
        missing=rule.value,
        centre=centre,
        width=width,
        **middle,
    )


def _body(
    path: Path,
    name: str,
    algorithm: Algorithm,
    contract: ScopeContract,
    inputs: tuple[TableContract | DmdtContract, ...],
    found: _Found,
    today: datetime.date,
) -> CardBody:
    kinds = {"dnn": "network", "xgb": "boosted trees"}
    try:
        return CardBody(
            name=name,
            version=contract.version,
            title=f"Is it of the class {contract.label}? SCoPe's {kinds[algorithm]}, imported from {path.name}",
            finder="variables",
            algorithm=algorithm,
            licence=contract.licence,
            authors=(),
            source=Source(
                description="trained with SCoPe, imported by the user", file=path.name, sha256=sha256_of(path)
            ),
            created=today.isoformat(),
            inputs=inputs,
            outputs=(Output(name=found.output_name, columns=(contract.code,), activation="sigmoid"),),
            classes=(_class(contract),),
            micro_batch=MICRO_BATCH,
            training=Training(description="by SCoPe; not known here", recipe=dict(found.recipe)),
            thresholds={"described": DESCRIBED_THRESHOLD},
            notes=(
                "feature list, scaling and rules for missing values are the importing user's word",
                "scores are not calibrated",
            ),
        )
    except ValidationError as problem:
        first = problem.errors()[0]
        raise InputError(f"{name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _class(contract: ScopeContract) -> ClassSpec:
    # how frequent the class was in the training set is not known: with equal numbers no score is carried over
    return ClassSpec(
        name=contract.code,
        title=contract.label,
        training_prior=0.5,
        prior=0.5,
        threshold=DESCRIBED_THRESHOLD,
    )


def _golden(body: CardBody, onnx: bytes) -> Golden:
    """Rows that are no star's, from the range of each feature; the first lacks all that may be missing."""
    assert body.table is not None
    columns = []
    for at, feature in enumerate(body.table.included):
        low, width = feature.centre or 0.0, feature.width or 1.0
        values: list[float | None] = [
            float(f"{low + width * share:.6g}") for share in uniforms(GOLDEN_SEED, at, N_GOLDEN).tolist()
        ]
        if feature.missing != "drop":
            values[0] = None
        columns.append(values)
    golden = Golden(
        table=tuple(zip(*columns, strict=True)),
        dmdt=None if body.dmdt is None else SyntheticDmdt(seed=GOLDEN_SEED, count=N_GOLDEN),
        outputs=((0.0,),) * N_GOLDEN,
    )
    unchecked = body.model_copy(update={"golden": golden})
    content = {key: value for key, value in dict(body).items() if key != "golden"}
    model = Model(ModelCard(**content, onnx_sha256="0" * 64), onnx, body.name)
    return golden.model_copy(
        update={"outputs": tuple(map(tuple, model.scores(golden_inputs(unchecked)).tolist()))}
    )
