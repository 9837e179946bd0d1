"""The loop, its checkpoints and the export, on a network and data that take seconds."""

from __future__ import annotations

import datetime
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from tapetum.core.errors import FormatError, InputError, MissingExtraError, ModelError, UsageError
from tapetum.models.runtime import Model
from tapetum.training import datasets
from tapetum.training.datasets import Examples, Key, empty_examples, simulated_ids
from tapetum.training.networks import build_network
from tapetum.training.recipe import PacketData, Recipe, load_recipe
from tapetum.training.split import role_of

if TYPE_CHECKING:
    from tapetum.training.split import Role

torch = pytest.importorskip("torch", reason="training needs torch: pip install 'tapetum[train]'")
pytestmark = pytest.mark.needs_train
TODAY = datetime.date(2026, 1, 2)

TINY = """
name = "tiny"
seed = 4
[card]
title = "A network for tests"
version = "0.1.0"
description = "Learns to see a spot."
[input]
name = "images"
size = 17
channels = ["science", "template", "difference"]
masks = "combined"
larger = "crop_centre"
normalisation = { method = "background_noise", softening = 2.0 }
padding = { side = "centre", value = 0.0, when = "after" }
[network]
name = "compact"
arguments = { widths = [8, 8], head = 8, squeeze = 8 }
[[data]]
source = "simulation"
seed = 3
pool = 40
renew = 10
validation = 24
test = 24
[data.mix]
new_source = 1
cosmic_ray = 1
[augment]
cut = 0.2
holes = 0.2
[optimiser]
epochs = 2
batch = 16
rate = 5e-3
average = 0.8
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "tiny.toml").write_text(TINY)
    return load_recipe(str(tmp_path / "tiny.toml"))


class Spots:
    """A bright spot in the difference is real; written as a data source is."""

    def __init__(self, n: int = 200) -> None:
        self.n = n

    def examples(self, role: Role, epoch: int = 0) -> Examples:
        """`n` alerts, the same in every epoch."""
        del epoch
        rng = np.random.default_rng([len(role), 1])
        names = simulated_ids(5, role)
        real = rng.random(self.n) < 0.5
        stamps = rng.normal(0, 1, (self.n, 3, 63, 63)).astype(np.float32)
        stamps[real, 2, 30:33, 30:33] += 8
        none = np.full(self.n, np.nan, np.float32)
        return Examples(
            stamps,
            np.full((self.n, 3, 2), 63, np.int16),
            real.astype(np.float32),
            [next(names) for _ in range(self.n)],
            np.zeros(self.n, np.int64),
            ["simulated"] * self.n,
            ["spot"] * self.n,
            none,
            none,
        )

    def keys(self, role: Role, epochs: int = 1) -> list[Key]:
        """Their names."""
        del epochs
        return [Key("simulated", 0, name) for name in self.examples(role).object_id]


def _weights(network) -> np.ndarray:
    return np.concatenate([value.double().numpy().ravel() for value in network.state_dict().values()])


def test_it_learns_and_the_log_says_so(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.evaluate import auc
    from tapetum.training.loop import fit
    from tapetum.training.stamp_task import StampTask, logits_of

    longer = recipe.model_copy(update={"optimiser": recipe.optimiser.model_copy(update={"epochs": 4})})
    network = fit(StampTask(longer, [(Spots(), 2)]), tmp_path / "run")
    test = Spots().examples("test")
    assert auc(logits_of(network, test, recipe), test.target > 0.5) > 0.98
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,seconds,rate,loss,validation_loss")
    assert len(rows) == 5
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0]


def test_a_resumed_run_gives_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training import loop
    from tapetum.training.stamp_task import StampTask

    whole = loop.fit(StampTask(recipe, [(Spots(60), 1)]), tmp_path / "whole")

    class Interrupted(Spots):
        """Stops at the second epoch, as a power cut would."""

        def examples(self, role: Role, epoch: int = 0) -> Examples:
            if epoch == 1:
                raise KeyboardInterrupt
            return super().examples(role, epoch)

    with pytest.raises(KeyboardInterrupt):
        loop.fit(StampTask(recipe, [(Interrupted(60), 1)]), tmp_path / "cut")
    resumed = loop.fit(StampTask(recipe, [(Spots(60), 1)]), tmp_path / "cut")
    np.testing.assert_array_equal(_weights(resumed), _weights(whole))
    again = loop.fit(StampTask(recipe, [(Spots(60), 1)]), tmp_path / "cut")  # nothing left to do
    np.testing.assert_array_equal(_weights(again), _weights(whole))


def test_the_seed_decides(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.loop import fit
    from tapetum.training.stamp_task import StampTask

    one = fit(StampTask(recipe, [(Spots(40), 1)]), tmp_path / "a")
    other = fit(StampTask(recipe.model_copy(update={"seed": 5}), [(Spots(40), 1)]), tmp_path / "b")
    assert not np.array_equal(_weights(one), _weights(other))


@pytest.mark.parametrize("wrong", ["held", "test"])
def test_the_loop_refuses_objects_it_may_not_learn_from(recipe: Recipe, tmp_path: Path, wrong: Role) -> None:
    from tapetum.training.loop import fit
    from tapetum.training.stamp_task import StampTask

    class Leaky(Spots):
        """Hands out an object of another role among those to learn from."""

        def examples(self, role: Role, epoch: int = 0) -> Examples:
            good = super().examples(role, epoch)
            return (
                replace(good, object_id=[next(simulated_ids(8, wrong)), *good.object_id[1:]])
                if role == "fit"
                else good
            )

    with pytest.raises(UsageError, match=f"belongs to the {wrong} part"):
        fit(StampTask(recipe, [(Leaky(20), 1)]), tmp_path)
    assert not (tmp_path / "checkpoint.npz").exists()


def test_a_damaged_or_foreign_checkpoint_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.loop import fit
    from tapetum.training.stamp_task import StampTask

    (tmp_path / "checkpoint.npz").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match=r"checkpoint\.npz"):
        fit(StampTask(recipe, [(Spots(20), 1)]), tmp_path)


def test_examples_without_truth_are_left_out(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.loop import fit
    from tapetum.training.stamp_task import StampTask

    class Unknown(Spots):
        """Every other alert is unlabelled."""

        def examples(self, role: Role, epoch: int = 0) -> Examples:
            good = super().examples(role, epoch)
            target = good.target.copy()
            target[::2] = np.nan
            return replace(good, target=target)

    network = fit(StampTask(recipe, [(Unknown(60), 1)]), tmp_path)
    assert np.isfinite(_weights(network)).all()
    assert (tmp_path / "log.csv").read_text().splitlines()[-1].endswith(",30")


def test_the_exported_network_is_the_trained_one(
    recipe: Recipe, tmp_path: Path, rng: np.random.Generator
) -> None:
    from tapetum.training.export import check_onnx, export_onnx, folded

    network = build_network("compact", 4, 17, {"widths": [8, 16], "head": 8})
    network.train()
    for _ in range(5):  # running statistics that are not the initial ones
        network(torch.from_numpy(rng.normal(1, 3, (16, 4, 17, 17)).astype(np.float32)))
    network.eval()
    images = rng.normal(0, 2, (40, 4, 17, 17)).astype(np.float32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(network).modules())
    export_onnx(network, tmp_path / "model.onnx", "images", (4, 17, 17), 20)
    assert check_onnx(tmp_path / "model.onnx", network, images) < 1e-5
    assert check_onnx(tmp_path / "model.onnx", network, images[:1]) < 1e-5  # the first axis is free
    export_onnx(network, tmp_path / "again.onnx", "images", (4, 17, 17), 20)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    other = build_network("compact", 4, 17, {"widths": [8, 16], "head": 8}).eval()
    with pytest.raises(ModelError, match="differ by"):
        check_onnx(tmp_path / "model.onnx", other, images)


def test_macs_are_counted_from_the_graph(tmp_path: Path) -> None:
    from tapetum.training.export import export_onnx
    from tapetum.training.macs import count_macs

    network = build_network("compact", 4, 17, {"widths": [8], "head": 8, "squeeze": 4}).eval()
    export_onnx(network, tmp_path / "model.onnx", "images", (4, 17, 17), 20)
    stem, second, squeeze = 81 * 8 * 4 * 9, 81 * 8 * 8 * 9, 81 * 4 * 8
    assert count_macs(tmp_path / "model.onnx") == stem + second + squeeze + 4 * 81 * 8 + 8


def test_train_and_calibrate_from_the_command_line(tmp_path: Path) -> None:
    from tapetum.cli.app import app

    (tmp_path / "tiny.toml").write_text(TINY)
    out = tmp_path / "model"
    result = CliRunner().invoke(app, ["models", "train", str(tmp_path / "tiny.toml"), "-o", str(out)])
    assert result.exit_code == 0, result.output
    card = Model.load(str(out)).card
    assert (card.name, card.version, card.calibration.method) == ("tiny", "0.1.0", "platt")
    assert {entry.role for entry in card.training.data} == {"training", "validation", "test"}
    assert card.reliability is not None
    assert "simulated_auc" in card.metrics
    assert json.loads((out / "recipe.json").read_text())["seed"] == 4
    run = tomllib.loads((out / "settings.toml").read_text())["run"]
    assert (run["epochs"], run["device"], run["without"]) == (2, "cpu", [])
    # the pool of 40 and the 10 new ones of the second epoch
    assert {entry.role: entry.n for entry in card.training.data}["training"] == 50
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = CliRunner().invoke(app, ["models", "train", str(tmp_path / "tiny.toml"), "-o", str(out)])
    assert again.exit_code == 0, again.output
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    # another recipe does not creep into this folder
    (tmp_path / "tiny.toml").write_text(TINY.replace("seed = 4", "seed = 6"))
    refused = CliRunner().invoke(app, ["models", "train", str(tmp_path / "tiny.toml"), "-o", str(out)])
    assert isinstance(refused.exception, UsageError)
    command = [
        "models",
        "calibrate",
        str(out),
        "--recipe",
        str(tmp_path / "tiny.toml"),
        "--method",
        "temperature",
    ]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "next")])
    assert isinstance(result.exception, UsageError)
    assert "nothing to calibrate on" in str(result.exception)
    assert not (tmp_path / "next").exists()
    result = CliRunner().invoke(app, [*command, "--with", "simulation", "-o", str(tmp_path / "next")])
    assert result.exit_code == 0, result.output
    card = Model.load(str(tmp_path / "next")).card
    assert (card.version, card.calibration.method) == ("0.1.1", "temperature")
    assert "temperature, fitted on 24 simulated" in card.notes[-1]
    assert (tmp_path / "next" / "settings.toml").is_file()
    diagram = tmp_path / "diagram.svg"
    result = CliRunner().invoke(app, ["models", "evaluate", str(out), "--diagram", str(diagram)])
    assert result.exit_code == 0, result.output
    assert "<svg" in diagram.read_text()
    report = tmp_path / "report.md"
    measured = ["models", "evaluate", str(out), "--simulated", "--recipe", str(tmp_path / "tiny.toml")]
    result = CliRunner().invoke(app, [*measured, "-o", str(report)])
    assert result.exit_code == 0, result.output
    assert "Multiplications per alert" in report.read_text()
    run = tomllib.loads((tmp_path / "report.md.settings.toml").read_text())["run"]
    assert (run["verb"], run["simulated"]) == ("models evaluate", True)


def _with_packets(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": [PacketData(source="packets"), *recipe.data]})


class _Night:
    """Packets with the names of a night, in the place of files."""

    def __init__(self, night: int) -> None:
        self.night = night

    def examples(self, role: Role, epoch: int = 0) -> Examples:
        """Forty spots under names of this night."""
        del epoch
        spots = Spots(40).examples(role)
        names = simulated_ids(self.night, role)
        object_id = [next(names) for _ in range(40)]
        return replace(spots, object_id=object_id, origin=["ztf"] * 40, alert_id=np.arange(40))

    def keys(self, role: Role, epochs: int = 1) -> list[Key]:
        """The names."""
        del epochs
        return [Key("ztf", number, name) for number, name in enumerate(self.examples(role).object_id)]


@pytest.fixture
def nights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path `7` stands for the packets of night 7."""
    makers = {**datasets.SOURCES, "packets": lambda data, recipe, paths, earlier: _Night(int(paths[0].name))}
    monkeypatch.setattr(datasets, "SOURCES", makers)


@pytest.mark.usefixtures("nights")
def test_a_folder_belongs_to_one_recipe_and_its_data(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.run import train

    plan, out = _with_packets(recipe), tmp_path / "model"
    first = train(plan, [Path("7")], out, today=TODAY)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert not first.finished_before
    again = train(plan, [Path("7")], out, today=TODAY + datetime.timedelta(1))
    assert again.finished_before
    assert again.card == first.card
    with pytest.raises(UsageError, match=r"on other data.*--overwrite"):
        train(plan, [Path("8")], out, today=TODAY)
    newer = plan.model_copy(update={"card": plan.card.model_copy(update={"version": "0.2.0"})})
    with pytest.raises(UsageError, match=r"holds tiny 0\.1\.0, not 0\.2\.0"):
        train(newer, [Path("7")], out, today=TODAY)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for name in ("model.onnx", "card.json"):  # as after an interruption: still not with other data
        (out / name).unlink()
    with pytest.raises(UsageError, match="on other data"):
        train(plan, [Path("8")], out, today=TODAY)
    train(plan, [Path("8")], out, today=TODAY, overwrite=True)
    assert (out / "recipe.json").read_bytes() != before["recipe.json"]
    rows = (out / "log.csv").read_text().splitlines()
    assert len(rows) == 1 + plan.optimiser.epochs  # from the beginning
    assert train(plan, [Path("8")], out, today=TODAY).finished_before


@pytest.mark.usefixtures("nights")
def test_a_new_calibration_keeps_nothing_of_the_old(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.recalibrate import recalibrate
    from tapetum.training.run import train

    old = train(recipe, [], tmp_path / "model", today=TODAY).card
    assert "simulated_auc" in old.metrics
    new = recalibrate(
        str(tmp_path / "model"), recipe, [Path("7")], tmp_path / "next", method="platt", today=TODAY
    )
    assert {name.split("_")[0] for name in new.metrics} == {"packets"}
    assert {name.split("_")[0] for name in new.thresholds} == {"packets"}
    assert new.reliability is not None
    assert new.reliability.data == "test part: 40 packets"
    assert [(entry.role, entry.name) for entry in new.training.data] == [
        ("training", "simulated"),
        ("validation", "ztf"),
        ("test", "ztf"),
    ]
    assert new.onnx_sha256 == old.onnx_sha256
    assert new.notes[-1].startswith("Calibration of version 0.1.1: platt, fitted on 40 ztf")
    third = recalibrate(
        str(tmp_path / "next"), recipe, [Path("8")], tmp_path / "third", method="isotonic", today=TODAY
    )
    assert [text[:35] for text in third.notes] == ["Calibration of version 0.1.2: isoto"]
    with pytest.raises(UsageError, match="no such data source"):
        recalibrate(
            str(tmp_path / "model"), recipe, [], tmp_path / "x", method="platt", today=TODAY, also=["sky"]
        )


def test_a_name_and_version_are_one_network(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.models.card import load_card
    from tapetum.models.registry import find_model
    from tapetum.training.run import free_version, train

    (tmp_path / "tiny.toml").write_text(TINY)
    path = str(tmp_path / "tiny.toml")
    taken = load_recipe(path, model_name="realbogus", version="1.0.0")
    with pytest.raises(UsageError, match=r"realbogus 1\.0\.0 already.*--version"):
        train(taken, [], tmp_path / "model", today=TODAY)
    assert not (tmp_path / "model").exists()
    shipped = tuple(int(number) for number in load_card(find_model("realbogus").card).version.split("."))
    assert free_version(taken, tmp_path / "new") == f"{shipped[0]}.{shipped[1] + 1}.0"
    assert free_version(load_recipe(path, model_name="unheard-of"), tmp_path / "new") == "0.1.0"
    free = load_recipe(path, model_name="realbogus", version="1.99.0")
    card = train(free, [], tmp_path / "model", today=TODAY).card
    assert (card.name, card.version) == ("realbogus", "1.99.0")
    assert free_version(taken, tmp_path / "model") == "1.99.0"  # the same run, looked at again
    with pytest.raises(InputError, match=r"card\.version"):
        load_recipe(path, version="newest")


def test_what_cannot_be_trained_is_refused_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.run import train

    out = tmp_path / "model"
    packets = recipe.model_copy(update={"data": [PacketData(source="packets")]})
    with pytest.raises(InputError, match="no example to learn from"):
        train(packets, [], out, today=TODAY)
    with pytest.raises(UsageError, match="--without simulations: no such data source"):
        train(recipe, [], out, today=TODAY, without=["simulations"])
    with pytest.raises(UsageError, match="--alerts names packets"):
        train(recipe, [tmp_path], out, today=TODAY)
    with pytest.raises(UsageError, match=r"--device nowhere.*cpu always works"):
        train(recipe, [], out, today=TODAY, device="nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"--device cuda.*cpu always works"):
            train(recipe, [], out, today=TODAY, device="cuda")
    assert not out.exists()
    out.mkdir()
    (out / "card.json").write_text("{}")
    with pytest.raises(UsageError, match=r"holds card\.json of something else"):
        train(recipe, [], out, today=TODAY)


def test_the_keys_of_a_simulation_are_what_it_shows(recipe: Recipe) -> None:
    data = recipe.data[0].model_copy(update={"pool": 6, "renew": 4})
    source = datasets.SimulationSource(data)
    shown = {name for epoch in range(3) for name in source.examples("fit", epoch).object_id}
    keys = source.keys("fit", 3)
    assert len(keys) == 6 + 2 * 4
    assert {key.object_id for key in keys} == shown
    gaps = datasets.SimulationSource(data.model_copy(update={"renew": 9})).keys("fit", 2)
    assert len(gaps) == 12
    assert source.keys("held", 3) == []


def test_no_data_is_a_clear_error(recipe: Recipe, tmp_path: Path) -> None:
    from tapetum.training.run import train

    with pytest.raises(UsageError, match="no data source is left"):
        train(recipe, [], tmp_path, today=TODAY, without=["simulation"])
    assert len(empty_examples()) == 0
    assert role_of(next(simulated_ids(1, "held"))) == "held"


def test_unknown_networks_and_arguments_are_named() -> None:
    with pytest.raises(InputError, match="known: compact"):
        build_network("vgg", 4, 17, {})
    with pytest.raises(InputError, match="does not take"):
        build_network("compact", 4, 17, {"depth": 3})


def test_without_torch_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"tapetum\[train\]"):
        build_network("compact", 4, 17, {})
