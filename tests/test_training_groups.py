"""Groups of classifiers: figures with intervals, several seeds, warm starts, reports, and the table of all."""

from __future__ import annotations

import hashlib
import json
import pickle
import shlex
import shutil
from datetime import date
from functools import partial
from importlib.resources import files

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.cli.training_variables import stats
from tapetum.core.errors import InputError, ModelError, UsageError
from tapetum.finders.variables import load, members
from tapetum.models.card import (
    DmdtContract,
    ModelCard,
    Output,
    TableContract,
    TableFeature,
    Training,
    load_card,
    write_card,
)
from tapetum.models.card import Source as CardSource
from tapetum.models.runtime import Model
from tapetum.models.scope_models import ScopeContract, import_scope
from tapetum.pipelines.slurm_tables import command_rows
from tapetum.training.evaluate import auc
from tapetum.training.groups import GroupPlan, choose_classes, count_classes, train_class
from tapetum.training.groups_table import importance_table, stats_table
from tapetum.training.record import settings_of
from tapetum.training.split import role_of
from tapetum.training.trees_task import folds_by_source
from tapetum.training.variables_data import Rows, TableSource
from tapetum.training.variables_metrics import FIGURES, Ranking, figures_of
from tapetum.training.variables_recipe import ClassifierOptions, any_recipe, assignment, classifier_recipe
from tapetum.training.variables_seeds import of_run, train_best
from tapetum.training.variables_warm import warm_start

TODAY = date(2026, 11, 20)
FEATURES = 'columns = [{ name = "a" }, { name = "b" }]\n'
QUICK = ("--algorithm", "xgb", "--skip-cv", "--epochs", "6", "--features", "f.toml")
runner = CliRunner()


def labelled(n=240, seed=5):
    """Two light curves for each source, eclipsing of two kinds: `a` tells them apart, `b` nothing."""
    rng = np.random.default_rng(seed)
    of = (rng.random(n) < 0.5)[np.arange(n) // 2 * 2]
    return pa.table(
        {
            "lc_id": [f"lc-{i}" for i in range(n)],
            "object_id": [f"star-{i // 2}" for i in range(n)],
            "a": 10 + 2 * of + rng.normal(size=n),
            "b": rng.normal(size=n),
            "scope_class": ["ea" if one else "ew" for one in of],
        }
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(labelled(), "t.parquet")
    (tmp_path / "f.toml").write_text(FEATURES)
    return tmp_path


def train(*words):
    return runner.invoke(app, ["models", "train", *words, "--table", "t.parquet"])


def status(done):
    """The exit status that the shell would see."""
    return getattr(done.exception, "exit_code", done.exit_code)


# ---- figures ------------------------------------------------------------------------------------------------------


def ranked(n=300, threshold=0.5, per_source=2):
    rng = np.random.default_rng(2)
    target = (rng.random(n) < 0.3).astype(float)
    probability = np.clip(np.round(0.3 * target + 0.7 * rng.random(n), 2), 0.01, 0.99)  # with ties
    return probability, target, [f"s{i // per_source}" for i in range(n)]


def test_figures_are_those_of_a_slow_count():
    probability, target, names = ranked()
    ranking = Ranking.of(probability, target, names, 0.5)
    got = dict(zip(FIGURES, ranking.figures(), strict=True))
    given, of = probability > 0.5, target > 0.5
    precision, recall = (given & of).sum() / given.sum(), (given & of).sum() / of.sum()
    steps = [
        (target[probability >= edge].mean(), of[probability >= edge].sum()) for edge in np.unique(probability)
    ]
    found = np.array([0, *[right for _, right in reversed(steps)]]) / of.sum()
    expected = {
        "accuracy": (given == of).mean(),
        "precision": precision,
        "recall": recall,
        "f1_score": 2 * precision * recall / (precision + recall),
        "roc_auc": auc(probability, of),
        "average_precision": np.sum(np.diff(found) * [share for share, _ in reversed(steps)]),
        "brier": np.mean((probability - target) ** 2),
        "log_loss": -np.mean(np.log(np.where(of, probability, 1 - probability))),
    }
    assert got == pytest.approx(expected)
    assert np.array(ranking.counts()).tolist() == [
        [(~given & ~of).sum(), (given & ~of).sum()],
        [(~given & of).sum(), (given & of).sum()],
    ]


def test_a_weight_is_so_many_copies_and_sources_are_drawn_whole():
    probability, target, names = ranked(60)
    times = np.arange(60) // 2 % 3  # of each source
    order = np.argsort(-probability, kind="stable")
    weighted = Ranking.of(probability, target, names, 0.4).figures(times[order].astype(float))
    rows = np.repeat(np.arange(60), times)
    copied = Ranking.of(probability[rows], target[rows], [names[i] for i in rows], 0.4).figures()
    np.testing.assert_allclose(weighted, copied)
    # light curves that say the same twice tell no more than one of them
    once = figures_of(Ranking.of(probability, target, [str(i) for i in range(60)], 0.4))
    twice = figures_of(
        Ranking.of(np.tile(probability, 2), np.tile(target, 2), [str(i % 60) for i in range(120)], 0.4)
    )
    for name in FIGURES:
        assert (twice[name].low, twice[name].high) == pytest.approx((once[name].low, once[name].high)), name
        assert once[name].low < once[name].value < once[name].high


def test_figures_without_an_example_are_not_numbers():
    figures = figures_of(Ranking.of(np.array([0.2, 0.4]), np.zeros(2), ["a", "b"], 0.5), n_bootstrap=5)
    assert np.isnan([figures[name].value for name in ("precision", "recall", "roc_auc")]).all()
    assert figures["accuracy"].value == 1


def test_folds_deal_out_both_kinds_and_keep_sources_whole():
    names = [f"s{i // 2}" for i in range(60)]
    target = (np.arange(60) // 2 < 4).astype(float)  # four sources are of the class
    folds = folds_by_source(names, target, 5, seed=1)
    assert len(folds) == 4
    judged = [{names[i] for i in judge} for _, judge in folds]
    assert set.union(*judged) == set(names)
    assert sum(map(len, judged)) == len(set(names))
    assert [int(target[judge].sum()) for _, judge in folds] == [2] * 4
    assert all(not {names[i] for i in learn} & judge for (learn, _), judge in zip(folds, judged, strict=True))


# ---- options ------------------------------------------------------------------------------------------------------


def test_every_described_option_of_training_reaches_the_recipe(tmp_path):
    (tmp_path / "s.json").write_text('{"ad": {"min": 1, "max": 3, "median": 2, "mean": 2, "std": 0.5}}')
    options = ClassifierOptions(
        "dnn", None, "ELS", None, tmp_path / "s.json", seed=7, threshold=0.6, balance=2.5, weighted=False,
        scaling="median_std", batch=32, rate=1e-3, patience=30,
        assignments=("optimiser.beta_1=0.8", "optimiser.decay=1e-4", "optimiser.amsgrad=true",
                     "data.other_view=negative"),
    )  # fmt: skip
    recipe = any_recipe("variables-ea", 50, options=options)
    optimiser = recipe.optimiser
    assert (optimiser.epochs, optimiser.batch, optimiser.rate, optimiser.patience) == (50, 32, 1e-3, 30)
    assert (optimiser.beta_1, optimiser.beta_2, optimiser.decay, optimiser.amsgrad) == (
        0.8,
        0.999,
        1e-4,
        True,
    )
    assert (recipe.seed, recipe.balance, recipe.weighted) == (7, 2.5, False)
    assert (recipe.data[0].threshold, recipe.data[0].other_view) == (0.6, "negative")
    assert (recipe.features.period_suffix, recipe.features.scaling) == ("ELS", "median_std")
    assert recipe.features.statistics["ad"].std == 0.5
    assert options.given()[:2] == ["--algorithm", "--period-suffix"]
    for wrong, why in (
        ("beta", "write KEY=VALUE"),
        ("of=ew", "argument or option of its own"),
        ("a.=1", "KEY"),
    ):
        with pytest.raises(UsageError, match=why):
            assignment(wrong)
    with pytest.raises(InputError, match=r"optimiser\.speed"):
        any_recipe("variables-ea", options=ClassifierOptions("dnn", assignments=("optimiser.speed=1",)))


def test_given_statistics_scale_instead_of_those_of_the_training_part(here):
    changes = {
        "features": {
            "columns": [{"name": "a"}, {"name": "b"}],
            "dmdt": False,
            "statistics": {"a": {"min": 4, "max": 8}},
        }
    }
    source = TableSource(classifier_recipe("variables-ea", "dnn", changes), [here / "t.parquet"])
    first, second = source.contract.features
    assert (first.centre, first.width) == (4, 4)
    fit = [role_of(name) == "fit" for name in labelled()["object_id"].to_pylist()]
    assert second.centre == labelled()["b"].to_numpy()[fit].min()
    changes["features"]["scaling"] = "median_std"
    with pytest.raises(InputError, match="median and std are needed"):
        _ = TableSource(classifier_recipe("variables-ea", "dnn", changes), [here / "t.parquet"]).contract


def test_what_goes_with_a_group_and_what_does_not(here):
    for words, why in (
        (["variables", *QUICK], "name its folder with --group"),
        (["variables-ea", *QUICK, "--seeds", "2"], "--seeds needs --group"),
        (["realbogus", "--group", "g"], "--group is for the recipe variables"),
        (["variables", *QUICK, "--group", "g", "-o", "x"], "--out does not go with --group"),
        (["variables-nothing", *QUICK, "--group", "g"], "'nothing' is no class"),
        (["tracking", "--batch-size", "8"], "--batch-size is for classifiers"),
        (["tracking", "--warm-start", "g"], "--warm-start is for classifiers"),
        (["variables", "--group", "g"], "say how with --algorithm"),
        (["variables-ea", *QUICK, "--group", "g", "--sweep"], "--sweep is for networks"),
    ):  # fmt: skip
        done = train(*words)
        assert status(done) in (2, 3), (words, done.output)
        assert why in str(done.exception), words
    assert not (here / "g" / "ea-xgb" / "card.json").exists()


# ---- groups -------------------------------------------------------------------------------------------------------


def test_classes_with_enough_examples(here):
    plan = GroupPlan(here / "g", (here / "t.parquet",), ClassifierOptions("xgb"), TODAY)
    counts = {entry.code: (entry.n, entry.n_sources) for entry in count_classes(plan)}
    names = labelled()["scope_class"].to_pylist()
    used = [role_of(name) != "held" for name in labelled()["object_id"].to_pylist()]
    n = sum(one == "ea" and there for one, there in zip(names, used, strict=True))
    assert counts["ea"] == (n, n // 2)
    assert counts["e"] == counts["vnv"] == (sum(used), sum(used) // 2)
    assert counts["rrab"] == (0, 0)
    chosen, left_out = choose_classes(plan, n)
    assert {"e", "ea", "vnv"} <= {entry.code for entry in chosen}
    chosen, left_out = choose_classes(plan, n + 1)
    assert f"ea: {n} light curves, fewer than {n + 1}" in left_out
    with pytest.raises(InputError, match="no class to train"):
        choose_classes(plan, 1000)


def test_a_table_that_says_nothing_of_a_class_is_left_out_for_it_alone(here):
    pytest.importorskip("xgboost")
    table = labelled().drop_columns(["scope_class"])
    of = np.array([one == "ea" for one in labelled()["scope_class"].to_pylist()], float)
    names = {"object_id": pa.array([f"other-{i // 2}" for i in range(len(of))])}
    pq.write_table(table.append_column("ea", pa.array(of)), here / "ea.parquet")
    other = table.set_column(1, "object_id", names["object_id"]).append_column("ew", pa.array(1 - of))
    pq.write_table(other, here / "ew.parquet")
    paths = (here / "ea.parquet", here / "ew.parquet")
    plan = GroupPlan(here / "g", paths, ClassifierOptions("xgb"), TODAY)
    assert [entry.code for entry in count_classes(plan)] == ["ea", "ew"]
    assert (plan.tables_of("ea"), plan.tables_of("ew")) == (paths[:1], paths[1:])
    words = ["models", "train", "variables", "--group", "g", *QUICK, "--min-count", "50", "--no-plots"]
    words += ["--table", "ea.parquet", "--table", "ew.parquet"]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "left out: ea.parquet for ew: it says nothing of them" in done.stderr
    assert "left out: ew.parquet for ea: it says nothing of them" in done.stderr
    assert len(members("g")) == 2
    pq.write_table(table, here / "none.parquet")
    silent = GroupPlan(here / "g", (here / "none.parquet",), ClassifierOptions("xgb"), TODAY)
    with pytest.raises(InputError, match="nothing is said of any class"):
        count_classes(silent)
    assert "says nothing of the class ea" in train_class(silent, "ea").problems[0]


def test_a_recomputed_table_is_no_finished_run(here):
    pytest.importorskip("xgboost")
    words = ("variables-ea", "--group", "g", *QUICK, "--no-plots")
    assert train(*words).exit_code == 0
    table = labelled()
    pq.write_table(table.set_column(2, "a", pa.array(-table["a"].to_numpy())), here / "t.parquet")
    again = train(*words)
    assert status(again) != 0
    assert "data differ" in str(again.exception)
    (here / "f.toml").write_text('columns = [{ name = "a" }]\n')
    assert train(*words, "--overwrite").exit_code == 0


def test_a_script_holds_wherever_it_runs(here, monkeypatch):
    (here / "stats.json").write_text('{"a": {"min": 0, "max": 20}, "b": {"min": -1, "max": 1}}')
    shipped = files("tapetum.finders") / "taxonomies" / "scope.toml"
    (here / "mine.toml").write_text(shipped.read_text())
    (here / "other.toml").write_text("jobs = 1\n")
    words = [
        "variables-ea",
        "--group",
        "g",
        *QUICK,
        "--feature-stats",
        "stats.json",
        "--taxonomy",
        "mine.toml",
    ]
    words = [
        "--config",
        "other.toml",
        "models",
        "train",
        *words,
        "--table",
        "t.parquet",
        "--script",
        "todo.sh",
    ]
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done.output
    (row,) = command_rows(here / "todo.sh")
    command = shlex.split(row.values["command"])
    for name in ("other.toml", "f.toml", "stats.json", "mine.toml", "t.parquet", "g"):
        assert str(here / name) in command, name
        assert name not in command, name
    assert command[:3] == ["--config", str(here / "other.toml"), "models"]
    # and a run by either path is the same run, whose card does not say where the file lay
    recipe = classifier_recipe("variables-ea", "xgb", taxonomy=str(here / "mine.toml"))
    assert settings_of(recipe) == settings_of(classifier_recipe("variables-ea", "xgb", taxonomy="mine.toml"))
    assert settings_of(recipe)["taxonomy"] == "mine.toml"


def test_what_a_killed_run_leaves_is_no_model_of_a_group(here):
    def model(folder):
        folder.mkdir(parents=True)
        for name in ("model.onnx", "card.json"):
            (folder / name).touch()

    model(here / "g" / "deep" / "ea-xgb")
    model(here / "g" / "deep" / "ea-xgb" / "plots")
    model(here / "g" / "ew-xgb" / "seeds" / "43")
    assert members("g") == [str(here / "g" / "deep" / "ea-xgb")]
    model(here / "g" / "seeds" / "44")
    with pytest.raises(ModelError, match="no model in it"):
        members(here / "g" / "ew-xgb")


def test_a_plan_travels_to_workers(here):
    plan = GroupPlan(
        here / "g", (here / "t.parquet",), ClassifierOptions("xgb", assignments=("seed=1",)), TODAY
    )
    assert pickle.loads(pickle.dumps(partial(train_class, plan))).args == (plan,)
    outcome = train_class(plan, "nothing")
    assert outcome.failed
    assert "'nothing' is no class" in outcome.problems[0]


def test_one_command_trains_every_class_that_can_be_and_names_the_others(here):
    pytest.importorskip("xgboost")
    words = ("variables", "--group", "g", *QUICK, "--min-count", "50", "--seeds", "2", "--no-plots")
    done = train(*words)
    # nothing but eclipsing stars: no example against the classes that hold both
    assert status(done) == 5, done.output
    assert "failed: e: the training part of the split has" in done.stderr
    assert sorted(path.name for path in (here / "g").iterdir()) == ["ea-xgb", "ew-xgb", "settings.toml"]
    assert [path.rpartition("/")[2] for path in members("g")] == ["ea-xgb", "ew-xgb"]  # runs are no members
    found = load("g/").find(labelled())
    of = np.array(labelled()["scope_class"].to_pylist()) == "ea"
    assert ((found["ea_xgb"].to_numpy() > 0.5) == of).mean() > 0.75
    again = train(*words)
    assert status(again) == 5
    assert again.stderr.count("finished already") == 2
    other = train(*words, "--set", "optimiser.max_depth=2")
    assert "holds the best of other runs" in other.stderr

    table, without = stats_table(here / "g", ("validation", "test"), seeds=True)
    assert (table.num_rows, without) == (8, [])
    rows = table.to_pylist()
    for code in ("ea", "ew"):
        of_class = [row for row in rows if row["class"] == code and row["part"] == "validation"]
        best = min(of_class, key=lambda row: row["log_loss"])
        assert [row["seed"] for row in of_class if row["chosen"]] == [best["seed"]]
        card = load_card(here / "g" / f"{code}-xgb" / "card.json")
        assert card.training.recipe["seed"] == best["seed"]
        assert "All 2 runs gave the same model" in card.notes[-1]  # without search nothing is drawn
        assert card.metrics["f1_score"].low <= card.metrics["f1_score"].value <= card.metrics["f1_score"].high
    assert {row["feature"] for row in importance_table(here / "g").to_pylist()} <= {"a", "b"}
    assert next(row["feature"] for row in importance_table(here / "g").to_pylist()) == "a"


def test_a_report_lies_beside_a_model(here):
    pytest.importorskip("xgboost")
    assert train("variables-ea", *QUICK, "-o", "ea").exit_code == 0
    names = {"confusion.svg", "recall.svg", "roc.svg", "stats.json"}
    for part in ("training", "validation", "test"):
        assert {path.name for path in (here / "ea" / "plots" / part).iterdir()} == names
    assert (here / "ea" / "plots" / "importance.svg").read_bytes().startswith(b"<?xml")
    content = json.loads((here / "ea" / "plots" / "test" / "stats.json").read_text())
    source = TableSource(
        classifier_recipe("variables-ea", "xgb", {"features": {"columns": [{"name": "a"}, {"name": "b"}]}}),
        [here / "t.parquet"],
    )
    rows, model = source.rows("test"), Model.load(f"{here}/ea/model.onnx")
    probability = model.probability(model.scores(rows.inputs)[:, 0])
    given = probability > model.card.classes[0].threshold
    assert content["accuracy"] == pytest.approx((given == (rows.target > 0.5)).mean())
    assert content["roc_auc"] == pytest.approx(auc(probability, rows.target > 0.5))
    assert sum(map(sum, content["confusion"])) == content["n"] == len(rows)
    low, high = content["intervals"]["roc_auc"]
    assert low < content["roc_auc"] <= high
    own = typer.Typer()
    own.command()(stats)
    done = runner.invoke(
        own, [str(here / "ea"), "--set-name", "test", "--importance", "i.csv", "-o", "s.ecsv"]
    )
    assert done.exit_code == 0, done.output
    assert "f1_score_low" in (here / "s.ecsv").read_text()
    assert (here / "i.csv").read_text().splitlines()[1].replace('"', "").startswith("ea,xgb,a,1,")


def test_trees_go_on_from_a_group_and_only_its_classes_unless_all(here):
    pytest.importorskip("xgboost")
    assert train("variables-ea", "--group", "old", *QUICK, "--no-plots").exit_code == 0
    old = json.loads((here / "old" / "ea-xgb" / "booster.json").read_text())
    words = ("variables", "--group", "new", *QUICK, "--min-count", "50", "--warm-start", "old", "--no-plots")
    done = train(*words, "--script", "todo.sh")
    assert done.exit_code == 0, done.output
    assert "left out: ew: no model of it in" in done.stderr
    (row,) = command_rows(here / "todo.sh")
    words_of_row = shlex.split(row.values["command"])
    assert words_of_row[:3] == ["models", "train", "variables-ea"]
    every = train(*words, "--all", "--script", "-").stdout.splitlines()
    assert [" --warm-start " in line for line in every if "variables-e" in line] == [
        False,
        True,
        False,
    ]  # e ea ew
    done = runner.invoke(app, words_of_row)
    assert done.exit_code == 0, done.output
    new = json.loads((here / "new" / "ea-xgb" / "booster.json").read_text())
    trees = [entry["learner"]["gradient_booster"]["model"]["trees"] for entry in (old, new)]
    assert len(trees[1]) >= len(trees[0])
    assert all(a["split_conditions"] == b["split_conditions"] for a, b in zip(*trees, strict=False))
    card, before = (load_card(here / group / "ea-xgb" / "card.json") for group in ("new", "old"))
    assert card.training.recipe["warm_start"] == {
        "name": before.name,
        "version": "1.0.0",
        "sha256": before.onnx_sha256,
    }
    assert str(here) not in card.model_dump_json()
    assert not (here / "new" / "ea-xgb" / "plots" / "test" / "roc.svg").exists()
    with pytest.raises(ModelError, match="no model of the class ew by xgb"):
        warm_start(str(here / "old"), "ew", "xgb")
    with pytest.raises(ModelError, match="answers for ea by xgb"):
        warm_start(str(here / "old" / "ea-xgb"), "ew", "xgb")


def test_trees_go_on_from_those_of_scope(here):
    pytest.importorskip("xgboost")
    assert train("variables-ea", "--group", "old", *QUICK, "--no-plots").exit_code == 0
    shutil.copy(here / "old" / "ea-xgb" / "booster.json", here / "ea.json")
    said = ScopeContract("ea", "EA", "phenomenological", features=("a", "b"))
    done = import_scope(here / "ea.json", "scope-ea", "xgb", said, here, TODAY, training_set=labelled())
    words = ("variables-ea", *QUICK, "--no-plots", "--warm-start", str(done.folder), "-o", "new")
    again = train(*words)
    assert again.exit_code == 0, again.output
    card = load_card(here / "new" / "card.json")
    assert card.training.recipe["warm_start"]["name"] == "scope-ea"
    assert card.table.included == done.card.table.included  # the contract stays with the trees
    old, new = (
        json.loads(path.read_text())["learner"]["gradient_booster"]["model"]["trees"]
        for path in (here / "ea.json", here / "new" / "booster.json")
    )
    assert [one["split_conditions"] for one in new[: len(old)]] == [one["split_conditions"] for one in old]


NET = {
    "features": {"columns": [{"name": "a"}, {"name": "b"}], "dmdt": False},
    "optimiser": {"epochs": 2, "rate": 0.01, "batch": 32},
    "network": {"arguments": {"dense": [8, 4], "head": 4}},
}


def test_runs_of_a_sweep_draw_their_own_numbers():
    recipe = classifier_recipe("variables-ea", "dnn", NET)
    runs = [of_run(recipe, number, sweep=True) for number in range(20)]
    assert [run.seed for run in runs] == list(range(42, 62))
    assert runs[0].optimiser == recipe.optimiser
    rates, epsilons = ([getattr(run.optimiser, name) for run in runs[1:]] for name in ("rate", "epsilon"))
    assert 3e-4 <= min(rates) < 2e-3 < max(rates) <= 3e-2
    assert 1e-9 <= min(epsilons) < 1e-8 < max(epsilons) <= 1e-7
    assert {run.optimiser.amsgrad for run in runs[1:]} == {True, False}
    assert of_run(recipe, 3, sweep=True) == runs[3]
    assert of_run(recipe, 3, sweep=False).optimiser == recipe.optimiser


def test_a_network_goes_on_from_the_best_of_a_group(here):
    pytest.importorskip("torch")
    table = here / "t.parquet"
    best = train_best(
        classifier_recipe("variables-ea", "dnn", NET),
        [table],
        here / "g" / "ea-dnn",
        today=TODAY,
        pictures=False,
    )
    content = json.loads((best.folder / "plots" / "importance.json").read_text())
    assert set(content["features"]) == {"a", "b"}
    assert not [note for note in best.card.notes if "Best of" in note]
    # a step so small that it changes nothing shows where the network began
    still = {**NET, "optimiser": {"epochs": 1, "rate": 1e-12, "batch": 32}}
    warm = warm_start(str(here / "g"), "ea", "dnn")
    source = TableSource(classifier_recipe("variables-ea", "dnn", still | {"warm_start": warm}), [table])
    assert source.contract == best.card.table
    again = train_best(
        source.recipe, [table], here / "h" / "ea-dnn", today=TODAY, pictures=False
    )  # fmt: skip
    inputs = source.rows("test").inputs
    one, two = (Model.load(f"{folder}/model.onnx").scores(inputs) for folder in (best.folder, again.folder))
    np.testing.assert_allclose(one, two, atol=1e-6)
    fewer = {**NET, "features": {"columns": [{"name": "a"}], "dmdt": False}, "warm_start": warm}
    with pytest.raises(InputError, match="needs the feature b, which is not in the list"):
        TableSource(classifier_recipe("variables-ea", "dnn", fewer), [table])
    more = {**NET, "features": {"columns": [{"name": x} for x in "abc"], "dmdt": False}, "warm_start": warm}
    with pytest.raises(InputError, match="lacks the feature c of the list"):
        TableSource(classifier_recipe("variables-ea", "dnn", more), [table])
    wide = {**NET, "network": {"arguments": {"dense": [9, 4], "head": 4}}, "warm_start": warm}
    with pytest.raises(InputError, match="training cannot go on from it"):
        train_best(classifier_recipe("variables-ea", "dnn", wide), [table], here / "w", today=TODAY)


def as_keras_has_it(model):
    """The same network with unnamed weights, and those of dense layers turned."""
    onnx = pytest.importorskip("onnx")
    renamed = {}
    for number, entry in enumerate(model.graph.initializer):
        renamed[entry.name] = f"c{number}"
        entry.name = f"c{number}"
    arrays = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Gemm":
            del node.attribute[:]
            entry = arrays[node.input[1]]
            entry.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(entry).T.copy(), entry.name)
            )
    return model.SerializeToString()


def test_a_network_goes_on_from_one_of_other_making(here, tmp_path):
    pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    import torch

    from tapetum.training.networks.variables import Variables
    from tapetum.training.variables_export import Apart, export_classifier
    from tapetum.training.variables_task import go_on_from

    rng = np.random.default_rng(3)
    rows = Rows(
        list("abcd"),
        rng.random((4, 2)).astype(np.float32),
        rng.random((4, 1, 26, 26)).astype(np.float32),
        np.zeros(4),
    )
    theirs, small = tmp_path / "theirs", {"dense": (8, 4), "planes": (3, 4), "head": 5}
    theirs.mkdir()
    torch.manual_seed(1)
    export_classifier(Variables(2, 26, **small).eval(), rows, theirs / "model.onnx", 20)
    content = as_keras_has_it(onnx.load(theirs / "model.onnx"))
    (theirs / "model.onnx").write_bytes(content)
    card = ModelCard(
        name="vnv", version="1.0.0", title="theirs", licence="unknown", authors=(), created="2026-11-20",
        algorithm="dnn", finder="variables", source=CardSource(description="elsewhere"),
        training=Training(description="elsewhere"), onnx_sha256=hashlib.sha256(content).hexdigest(),
        inputs=(
            TableContract(name="features", features=(TableFeature(name="a"), TableFeature(name="b"))),
            DmdtContract(name="dmdt"),
        ),
        outputs=(Output(name="score", columns=("vnv",)),),
    )  # fmt: skip
    write_card(theirs / "card.json", card)
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in small.items()}
    changes = {
        "features": {"columns": [{"name": "a"}, {"name": "b"}]},
        "network": {"arguments": arguments},
        "warm_start": warm_start(str(theirs), "vnv", "dnn"),
    }
    network = Variables(2, 26, **small)
    go_on_from(network, classifier_recipe("variables-vnv", "dnn", changes))
    assert network.training
    with torch.no_grad():
        mine = Apart(network.eval())(*(torch.from_numpy(array) for array in rows.inputs.values()))
    np.testing.assert_allclose(mine.numpy(), Model(card, content, "theirs").scores(rows.inputs), atol=1e-6)
    # the same shapes in another place are another network
    network.rows[1] = torch.nn.Tanh()
    with pytest.raises(InputError, match="the answers differ by"):
        go_on_from(network, classifier_recipe("variables-vnv", "dnn", changes))


def test_a_seed_that_fails_leaves_the_others_and_a_killed_run_goes_on(here, monkeypatch):
    pytest.importorskip("xgboost")
    from tapetum.training import variables_seeds

    quick = {
        "features": {"columns": [{"name": "a"}]},
        "optimiser": {"epochs": 3, "search": False, "subsample": 0.5},
    }
    recipe, trained, made = classifier_recipe("variables-ea", "xgb", quick), [], variables_seeds.train

    def failing(one, *args, **kwargs):
        trained.append(one.seed)
        if one.seed == 43:
            raise ModelError("ONNX and xgboost differ")
        if one.seed == 44 and trained.count(44) == 1:
            raise KeyboardInterrupt
        return made(one, *args, **kwargs)

    monkeypatch.setattr(variables_seeds, "train", failing)
    how = {"n_seeds": 3, "today": TODAY, "pictures": False}
    with pytest.raises(KeyboardInterrupt):
        train_best(recipe, [here / "t.parquet"], here / "g", **how)
    assert not (here / "g" / "card.json").exists()
    best = train_best(recipe, [here / "t.parquet"], here / "g", **how)
    assert trained == [42, 43, 44, 43, 44]  # 42 was there
    assert best.problems == ("seed 43: ONNX and xgboost differ",)
    content = json.loads((here / "g" / "seeds.json").read_text())
    assert content["failed"] == list(best.problems)
    losses = {run["seed"]: run["figures"]["validation"]["log_loss"]["value"] for run in content["runs"]}
    assert content["chosen"] == min(losses, key=losses.__getitem__)
    assert len(set(losses.values())) == 2
    assert "Best of 2 runs, chosen by the mean cross-entropy" in best.card.notes[-1]
    again = train_best(recipe, [here / "t.parquet"], here / "g", **how)
    assert (again.finished_before, again.problems) == (True, best.problems)
    with pytest.raises(UsageError, match="best of other runs"):
        train_best(recipe, [here / "t.parquet"], here / "g", **{**how, "n_seeds": 2})
    redone = train_best(recipe, [here / "t.parquet"], here / "g", **{**how, "n_seeds": 1}, overwrite=True)
    assert not redone.finished_before
    assert "Best of" not in " ".join(redone.card.notes)
