"""Our classifier of variable stars beside the common way to make one, on stars that neither learned from.

The rival: 22 statistics, the highest peak of a Lomb-Scargle periodogram and a fit of five harmonics (39 columns), and
scikit-learn's HistGradientBoosting, trained here on the same stars of the ASAS catalogue of variables (nine classes).
It is trained a second time on the stars of all surveys that ours learned from. Needs scikit-learn and labelled light
curves (``lightcurves/labelled`` of the developer data).
"""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import data_folder, machine
from tapetum.finders.variable_tree import SEARCH, load, softmax
from tapetum.lightcurves.fourier import series
from tapetum.lightcurves.periods.search import find_periods
from tapetum.lightcurves.statistics import statistics
from tapetum.training.variable_tree_card import logits_of
from tapetum.training.variable_tree_data import CurveSource, Examples
from tapetum.training.variable_tree_evaluate import recipe_of
from tapetum.training.variable_tree_metrics import (
    accuracy,
    class_table,
    confusion,
    f1_scores,
    macro_f1,
    with_intervals,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.lightcurves.curves import LightCurves
    from tapetum.training.evaluate import Figure

    Values = NDArray[np.float64]
    Whole = NDArray[np.int64]

NINE = ("rrab", "rrc", "dscu", "bcep", "ea", "eb", "ew", "mir", "acv")
CATALOGUE = "ASAS-3 (ACVS)"
RARE = NINE.index("bcep")  # of which the catalogue has a star or two
N_BOOTSTRAP = 1000
COUNTS = (20, 40, 80, 160, 320)
NO_ANSWER = len(NINE)  # a class that is none of the nine


def macro_f1_of_eight(matrix: Values) -> float:
    """Mean of F1 over the nine classes without the rare one."""
    scores = np.delete(f1_scores(matrix), RARE)
    return float(np.nanmean(scores))


MEASURES = {"accuracy": accuracy, "macro-F1": macro_f1, "macro-F1 without BCEP": macro_f1_of_eight}


def labelled() -> Path | None:
    """The labelled light curves of the developer data."""
    folder = data_folder()
    path = None if folder is None else folder / "lightcurves" / "labelled" / "labelled_lightcurves.parquet"
    return path if path is not None and path.is_file() else None


def rival_features(curves: LightCurves) -> Values:
    """22 statistics, period and power of the highest peak, a series of up to five harmonics: 39 columns."""
    rules = SEARCH.model_copy(update={"ranking": None})
    found = find_periods(curves, rules).table
    period = np.array(found["period_LS"].to_numpy(zero_copy_only=False), np.float64)
    fap = np.array(found["log10_fap_LS"].to_numpy(zero_copy_only=False), np.float64)
    fitted = series(curves, period).values
    waves = fitted[:, 4::2] + 1j * fitted[:, 5::2]
    size = np.abs(waves)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = size[:, 1:] / size[:, :1]
        phase = np.angle(waves[:, 1:] * np.conj(waves[:, :1] / size[:, :1]) ** np.arange(2, 6))
    return np.column_stack(
        [statistics(curves), period, fap, fitted[:, 0], fitted[:, 3], size, relative, phase]
    )


def which_nine(
    examples: Examples, leaves: tuple[str, ...], survey: str | None
) -> tuple[NDArray[np.intp], Whole]:
    """Curves of the nine classes, of one survey or all, and their classes."""
    truth = examples.inside.argmax(axis=1)
    code = np.array([NINE.index(leaves[place]) if leaves[place] in NINE else NO_ANSWER for place in truth])
    wanted = examples.sure & (code != NO_ANSWER)
    if survey is not None:
        wanted &= np.array([name == survey for name in examples.curves.table["survey"].to_pylist()])
    return np.flatnonzero(wanted), code[wanted]


def boosted(rows: Values, classes: Whole, judged: Values) -> Whole:
    """What scikit-learn's gradient boosting, as it comes, answers."""
    ensemble = import_module("sklearn.ensemble")
    model = ensemble.HistGradientBoostingClassifier(random_state=0).fit(rows, classes)
    return np.asarray(model.predict(judged), np.int64)


def rival_answers(learned: list[Examples], curves: LightCurves, leaves: tuple[str, ...]) -> dict[str, Whole]:
    """What the rival says of curves, trained on one catalogue and on all; nothing without scikit-learn."""
    if find_spec("sklearn") is None:
        print("variables: the rival needs scikit-learn: pip install scikit-learn", flush=True)
        return {}
    judged = rival_features(curves)
    answers = {}
    for name, survey in (("of the same catalogue", CATALOGUE), ("of all surveys", None)):
        chosen = [which_nine(part, leaves, survey) for part in learned]
        rows = np.concatenate(
            [
                rival_features(part.curves.take(places))
                for part, (places, _) in zip(learned, chosen, strict=True)
            ]
        )
        classes = np.concatenate([kind for _, kind in chosen])
        name = f"39 features, HistGradientBoosting, {len(classes)} curves {name}"
        answers[name] = boosted(rows, classes, judged)
    return answers


def difference(
    truth: Whole, ours: Whole, theirs: Whole, objects: list[str]
) -> dict[str, tuple[float, float, float]]:
    """By how much ours is better in each measure, with the interval from resampling stars."""
    rng = np.random.default_rng(1)
    _, owner = np.unique(objects, return_inverse=True)
    count, n = int(owner.max()) + 1, len(NINE) + 1
    drawn: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(N_BOOTSTRAP):
        times = np.bincount(rng.integers(0, count, count), minlength=count)[owner].astype(np.float64)
        pair = [confusion(truth, given, n, times) for given in (ours, theirs)]
        for name, function in MEASURES.items():
            drawn[name].append(function(pair[0]) - function(pair[1]))
    whole = [confusion(truth, given, n) for given in (ours, theirs)]
    out = {}
    for name, function in MEASURES.items():
        low, high = np.quantile(drawn[name], (0.025, 0.975))
        out[name] = (function(whole[0]) - function(whole[1]), float(low), float(high))
    return out


def among_nine(probability: Values, leaves: tuple[str, ...]) -> Whole:
    """The most probable of the nine classes."""
    return np.asarray(probability[:, [leaves.index(code) for code in NINE]].argmax(axis=1))


def among_all(probability: Values, leaves: tuple[str, ...]) -> Whole:
    """The most probable of all classes; those that are none of the nine are wrong answers."""
    codes = np.array([NINE.index(leaf) if leaf in NINE else NO_ANSWER for leaf in leaves])
    return np.asarray(codes[probability.argmax(axis=1)])


def thinned(curves: LightCurves, count: int) -> LightCurves:
    """The curves that have more points than this, with so many of them."""
    rng = np.random.default_rng([3, count])
    keep = np.zeros(len(curves.time), np.bool_)
    for first, last in zip(curves.offsets[:-1].tolist(), curves.offsets[1:].tolist(), strict=True):
        keep[first + rng.choice(last - first, min(count, last - first), replace=False)] = True
    return curves.where(keep)


def in_words(figures: dict[str, Figure]) -> str:
    """Values with intervals."""
    return ", ".join(
        f"{name} {each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for name, each in figures.items()
    )


def report_points(
    tree: Any, test: Examples, where: NDArray[np.intp], truth: Whole, leaves: tuple[str, ...]
) -> None:
    """How answers get worse with fewer points: the same stars, thinned."""
    some = test.take(where)
    enough = some.curves.n_points >= max(COUNTS)
    some, classes = some.take(enough), truth[enough]
    for count in (*COUNTS, 0):
        curves = thinned(some.curves, count) if count else some.curves
        chance = tree.judge(curves).leaf
        given = among_nine(chance, leaves)
        figures = with_intervals(MEASURES, classes, given, some.object_id, len(NINE) + 1)
        inside = (
            chance[np.arange(len(classes)), [leaves.index(NINE[place]) for place in classes]]
            >= tree.threshold
        )
        told = f"{count} points" if count else "all points"
        covered = f"in the set of {tree.config.coverage} {inside.mean():.3f}"
        print(f"    {told}, {len(classes)} curves: {in_words(figures)}, {covered}", flush=True)


def run(model: str = "variables", cache: Path | None = None, *, points: bool = True) -> None:
    """Measure and print."""
    path = labelled()
    if path is None:
        print("variables: no labelled light curves: point TAPETUM_TEST_DATA at the developer data")
        return
    tree = load(model)
    recipe, leaves = recipe_of(tree.model.card), tree.leaves
    source = CurveSource(recipe, [path], cache, answers=leaves)
    learned = [source.examples("fit"), source.examples("validation")]
    test = source.examples("test")
    where, truth = which_nine(test, leaves, CATALOGUE)
    objects = [test.object_id[place] for place in where]
    n_classes = len(NINE) + 1
    print(
        f"variables: {len(truth)} curves of {len(set(objects))} test stars of {CATALOGUE}, nine classes",
        flush=True,
    )
    probability = softmax(logits_of(tree.model, test) / tree.temperature)[where]
    answers = {
        f"{model} {tree.model.card.version}, best of the nine": among_nine(probability, leaves),
        f"{model} {tree.model.card.version}, best of all {len(leaves)}": among_all(probability, leaves),
    }
    rivals = rival_answers(learned, test.curves.take(where), leaves)
    answers |= rivals
    for name, given in answers.items():
        print(
            f"    {name}: {in_words(with_intervals(MEASURES, truth, given, objects, n_classes))}", flush=True
        )
    ours = next(iter(answers.values()))
    for name, theirs in rivals.items():
        for measure, (value, low, high) in difference(truth, ours, theirs, objects).items():
            print(
                f"    better than {name} by {value:+.3f} ({low:+.3f} to {high:+.3f}) in {measure}", flush=True
            )
    names = (*NINE, "other")
    first = next(iter(rivals.values()), None)
    scores = None if first is None else f1_scores(confusion(truth, first, n_classes))
    for row in class_table(truth, ours, objects, names):
        other = "not trained" if scores is None else f"{scores[names.index(row['class'])]:.3f}"
        interval = f"{row['f1_low']:.3f} to {row['f1_high']:.3f}"
        print(f"    {row['class']}: {row['stars']} stars, F1 {row['f1']:.3f} ({interval}), rival {other}")
    if points:
        report_points(tree, test, where, truth, leaves)


def main() -> None:
    """Command line."""
    from pathlib import Path

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="variables")
    parser.add_argument("--cache", type=Path, help="folder that keeps periods between runs")
    args = parser.parse_args()
    print(machine())
    run(args.model, args.cache)


if __name__ == "__main__":
    main()
