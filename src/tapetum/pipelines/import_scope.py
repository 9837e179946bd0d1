"""A classifier that SCoPe trained in, with what its files do not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.finders.taxonomy import load_taxonomy
from tapetum.models.feature_statistics import read_statistics
from tapetum.models.scope_models import (
    PERIOD_SUFFIX,
    ScopeContract,
    import_scope,
    read_scope_config,
)
from tapetum.pipelines.import_model import read_apart
from tapetum.report.read_tables import read_table

if TYPE_CHECKING:
    import datetime
    from collections.abc import Mapping
    from pathlib import Path

    from tapetum.models.installing import Imported
    from tapetum.models.scope_models import Algorithm, Scaling


@dataclass(frozen=True)
class ScopeFiles:
    """Where it stands what the files of a SCoPe model do not say; see `tapetum.models.scope_models`.

    Attributes
    ----------
    config
        SCoPe's ``config.yaml``: feature list, name of the period's algorithm, statistics, rules for missing values.
    statistics
        JSON with statistics of features, instead of those in `config`.
    training_set
        Feature table that the model was trained on.
    features
        List of features, instead of that in `config`.
    period_suffix, scaling, licence, version
        As in `tapetum.models.scope_models.ScopeContract`; None: what `config` says, or the described value.
    use_config_statistics
        Take the statistics in `config`, as SCoPe does where it is told ``--feature-stats config``.
    """

    config: Path | None = None
    statistics: Path | None = None
    training_set: Path | None = None
    features: tuple[str, ...] = ()
    period_suffix: str | None = None
    scaling: Scaling = "min_max"
    licence: str = "unknown"
    version: str = "1.0.0"
    use_config_statistics: bool = False


def import_scope_model(
    path: Path,
    class_name: str,
    algorithm: Algorithm,
    said: ScopeFiles,
    models: Path,
    today: datetime.date,
    *,
    name: str | None = None,
    taxonomy: str = "scope",
) -> Imported:
    """Import a classifier that SCoPe trained.

    Parameters
    ----------
    path
        ``.h5`` or ``.json``.
    class_name
        Code or label of its class.
    algorithm
        dnn or xgb.
    said
        What the files do not say.
    models
        Folder of imported models.
    today
        Date for the card.
    name
        Of the model; None: ``variables-CLASS-ALGORITHM``.
    taxonomy
        Of the class.

    Raises
    ------
    UsageError
        There is no such class.
    InputError
        As `tapetum.models.scope_models.import_scope`.
    """
    entry = load_taxonomy(taxonomy).of(class_name)
    config = None if said.config is None else read_scope_config(said.config, entry.code, entry.view)
    statistics: Mapping[str, Mapping[str, float]] = {}
    if said.statistics is not None:
        statistics = read_statistics(said.statistics)
    suffix = said.period_suffix
    if config is not None:
        suffix = config.period_suffix if suffix is None else suffix
        if not statistics and (said.use_config_statistics or said.training_set is None):
            statistics = config.statistics
    contract = ScopeContract(
        entry.code,
        entry.label,
        entry.view,
        features=said.features or (() if config is None else config.features),
        period_suffix=PERIOD_SUFFIX if suffix is None else suffix,
        scaling=said.scaling,
        statistics=statistics,
        strategies={} if config is None else config.strategies,
        version=said.version,
        licence=said.licence,
    )
    return import_scope(
        path,
        name or f"variables-{entry.code}-{algorithm}",
        algorithm,
        contract,
        models,
        today,
        training_set=None if said.training_set is None else read_table(said.training_set),
        read=read_apart,
    )
