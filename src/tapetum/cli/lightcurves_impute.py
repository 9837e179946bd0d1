"""Options that say what becomes of missing features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tapetum.pipelines.lightcurve_impute import Imputation

ImputeOption = Annotated[
    bool,
    typer.Option(
        "--impute",
        "--impute-missing-features",
        help="Replace missing features, by what is in the same table.",
    ),
]
ImputerOption = Annotated[
    Path | None, typer.Option("--imputer", help="Replace them by these rules, fitted before (JSON).")
]
ImputeFromOption = Annotated[
    str | None,
    typer.Option("--impute-from", metavar="TABLE", help="Replace them by what this training set has."),
]
ImputeRuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--impute-rule",
        metavar="FEATURE=zero|median|mean|regress|drop|keep",
        help="Instead of the described rule of a feature; may be repeated.",
    ),
]
ImputeRestOption = Annotated[
    Literal["keep", "drop", "zero", "median", "mean"],
    typer.Option("--impute-rest", help="Rule of features without one; the described system drops the row."),
]
SaveImputerOption = Annotated[
    Path | None, typer.Option("--save-imputer", metavar="FILE", help="Write the fitted rules, for --imputer.")
]


def imputation_of(
    *,
    impute: bool,
    imputer: Path | None,
    fit_on: str | None,
    rules: Sequence[str],
    rest: str,
    save: Path | None,
) -> Imputation | None:
    """How missing features are replaced; None: not at all.

    Raises
    ------
    UsageError
        Options do not go together.
    InputError
        A file is not there, or a rule is unknown.
    """
    from tapetum.core.errors import InputError, UsageError
    from tapetum.lightcurves.impute import Imputer, Strategy
    from tapetum.pipelines.lightcurve_impute import Imputation, rules_of

    if imputer is not None and (fit_on is not None or rules or save is not None or rest != "keep"):
        raise UsageError("--imputer has its own rules; leave the other options of imputation away")
    if imputer is not None:
        if not imputer.is_file():
            raise InputError(f"--imputer {imputer}: no such file")
        return Imputation(Imputer.from_json(imputer.read_text(encoding="utf-8")))
    if not impute and fit_on is None:
        if rules or save is not None or rest != "keep":
            raise UsageError(
                "--impute-rule, --impute-rest and --save-imputer are for --impute or --impute-from"
            )
        return None
    pairs = [(name, rule) for name, _, rule in (text.rpartition("=") for text in rules)]
    if not all(name for name, _ in pairs):
        raise UsageError(f"--impute-rule {' '.join(rules)}: write FEATURE=RULE, for instance ad=median")
    return Imputation(
        rules=rules_of(pairs),
        otherwise=Strategy(rest),
        fit_on=fit_on,
        save=None if save is None else str(save),
    )
