"""Bringing networks in: import, registry, runtime, golden vectors, calibration and the commands for them."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

import tapetum
from tapetum.cli.models import app
from tapetum.core.errors import FormatError, InputError, ModelError, PartialFailureError
from tapetum.models.calibration import calibrate
from tapetum.models.card import (
    Golden,
    IsotonicCalibration,
    ModelCard,
    NoCalibration,
    PlattCalibration,
    StoredArray,
    StoredStamps,
    SyntheticStamps,
    TemperatureCalibration,
    load_card,
    write_card,
)
from tapetum.models.golden import golden_inputs, synthetic_stamps, uniforms
from tapetum.models.importer import Contract, import_keras
from tapetum.models.keras_h5 import read_keras_h5
from tapetum.models.registry import find_model, imported_dir, list_models, load_template, template_names
from tapetum.models.runtime import Model
from tapetum.pipelines.import_model import read_apart

TODAY = datetime.date(2026, 11, 20)
PADDED = {"pad_side": "centre", "pad_value": 0.5, "licence": "MIT"}


def write_network(path, seed=1, side=7, units=1, features=0, activation="sigmoid"):
    """A Keras file: mean of each plane (and the features) through one dense layer."""
    rng = np.random.default_rng(seed)
    kernel = rng.normal(0, 2, (3 + features, units)).astype(np.float32)

    def entry(kind, name, inbound, **config):
        nodes = [[[parent, 0, 0, {}] for parent in inbound]] if inbound else []
        return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": nodes}

    layers = [
        entry("InputLayer", "i", [], batch_input_shape=[None, side, side, 3]),
        entry("GlobalMaxPooling2D", "p", ["i"]),
    ]
    last = "p"
    if features:
        layers.append(entry("InputLayer", "f", [], batch_input_shape=[None, features]))
        layers.append(entry("Concatenate", "j", ["p", "f"], axis=-1))
        last = "j"
    layers.append(entry("Dense", "o", [last], units=units, activation=activation))
    inputs = [["i", 0, 0], ["f", 0, 0]] if features else [["i", 0, 0]]
    config = {"layers": layers, "input_layers": inputs, "output_layers": [["o", 0, 0]]}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": config})
        group = file.create_group("model_weights/o")
        group.attrs["weight_names"] = [b"o/kernel:0", b"o/bias:0"]
        group["o/kernel:0"], group["o/bias:0"] = kernel, np.zeros(units, np.float32)
    return path


@pytest.fixture
def network(tmp_path):
    return write_network(tmp_path / "net.h5")


def imported(path, name="mine", models=None, **said):
    contract = Contract(**({"normalisation": "stamp_l2"} | PADDED | said))
    return import_keras(path, name, contract, models or imported_dir(), TODAY)


# --- import ---


def test_import_writes_a_model_that_loads_and_keeps_the_contract(network):
    done = imported(network, channels=("difference", "science", "template"))
    assert done.new
    assert sorted(path.name for path in done.folder.iterdir()) == ["card.json", "model.onnx"]
    model = Model.load("mine")
    assert model.card == load_card(done.folder / "card.json") == done.card
    images = model.card.images
    assert (images.size, images.channels, images.padding.side, images.padding.value) == (
        7,
        ("difference", "science", "template"),
        "centre",
        0.5,
    )
    assert model.card.source.file == "net.h5"
    assert model.card.outputs[0].activation == "sigmoid"
    assert len(model.card.golden.outputs) == 6


def test_the_same_file_again_does_nothing(network):
    first = imported(network)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.folder.iterdir()}
    again = imported(network)
    assert not again.new
    assert {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.folder.iterdir()
    } == before


def test_a_damaged_import_is_made_whole_by_the_same_file(network):
    done = imported(network)
    onnx_file = done.folder / "model.onnx"
    onnx_file.write_bytes(onnx_file.read_bytes()[:-10])
    assert imported(network).new
    assert Model.load("mine").check_golden() <= 1e-5


def test_another_file_or_contract_needs_another_version(network, tmp_path):
    imported(network)
    other = write_network(tmp_path / "other.h5", seed=2)
    with pytest.raises(InputError, match=r"imported from another file \(net.h5\)"):
        imported(other)
    with pytest.raises(InputError, match="another contract"):
        imported(network, normalisation="row_l2")
    imported(other, version="1.10.0")
    imported(other, version="1.9.0")
    assert find_model("mine").version == "1.10.0"
    assert find_model("mine@1.0.0").version == "1.0.0"
    assert [files.version for files in list_models() if files.name == "mine"] == ["1.10.0", "1.9.0", "1.0.0"]


def test_network_with_features(tmp_path):
    path = write_network(tmp_path / "f.h5", features=2)
    with pytest.raises(InputError, match="2 features, 0 given"):
        imported(path)
    done = imported(path, features=("rb", "fwhm"))
    assert done.card.features.features == ("rb", "fwhm")
    assert Model.load("mine").check_golden() <= 1e-5


def test_fully_convolutional_network_needs_a_size(tmp_path):
    path = write_network(tmp_path / "any.h5", side=None)
    with pytest.raises(InputError, match=r"--size"):
        imported(path)
    assert imported(path, size=21).card.images.size == 21


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"normalisation": None}, "--normalisation"),
        ({"normalisation": "minmax"}, "row_l2"),
        ({"pad_side": "left"}, "bottom_right"),
        ({"channels": ("science",)}, "takes 3 channels, not 1"),
        ({"channels": ("science", "template", "psf")}, "science"),
        ({"version": "1"}, "version"),
    ],
)
def test_incomplete_contracts_are_refused(network, said, message):
    with pytest.raises(InputError, match=message):
        imported(network, **said)
    assert not imported_dir().exists() or not list(imported_dir().rglob("card.json"))


def test_no_import_hides_a_model_of_the_package(tmp_path):
    file = tmp_path / "x.h5"
    file.write_bytes(b"never read")
    with pytest.raises(InputError, match="realbogus is a model of the package"):
        import_keras(file, "realbogus", Contract(**PADDED), imported_dir(), TODAY)


def test_names_cannot_leave_the_folder(network):
    with pytest.raises(InputError, match="name"):
        imported(network, name="../../evil")


def test_network_that_gives_no_score(tmp_path):
    path = write_network(tmp_path / "two.h5", units=2, activation="softmax")
    assert imported(path).card.outputs[0].columns == ("class_0", "class_1")


def test_unsupported_layers_name_the_file(tmp_path, network):
    with h5py.File(network, "a") as file:
        file.attrs["model_config"] = str(file.attrs["model_config"]).replace(
            "GlobalMaxPooling2D", "Attention"
        )
    with pytest.raises(FormatError, match=r"net\.h5: layer p \(Attention\) is not supported"):
        imported(network)


def test_templates_are_valid_and_refuse_strangers(network):
    known = [f"acai-{k}" for k in "bhnov"] + ["braai-d6-m7", "braai-d6-m9", "maximask", "maxitrack"]
    assert template_names() == known
    for name in template_names():
        template = load_template(name)
        assert template.name == name
        assert template.licence == "MIT"
        assert template.golden is not None
    assert load_template("nobody") is None
    with pytest.raises(InputError, match="not the weights of braai-d6-m7"):
        import_keras(network, "braai-d6-m7", None, imported_dir(), TODAY)
    with pytest.raises(InputError, match="leave the options away"):
        import_keras(network, "braai-d6-m7", Contract(), imported_dir(), TODAY)


# --- registry ---


def test_models_by_path(network, tmp_path):
    done = imported(network)
    for spec in (str(done.folder), str(done.folder / "model.onnx")):
        assert Model.load(spec).card.name == "mine"
    moved = tmp_path / "elsewhere.onnx"
    shutil.copy(done.folder / "model.onnx", moved)
    with pytest.raises(ModelError, match=r"card\.json: no such file"):
        find_model(str(moved))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nobody", "there is no model 'nobody'; known: .*braai-d6-m7"),
        ("mine@2.0.0", "mine has no version 2.0.0; there is 1.0.0"),
        ("braai-d6-m7", "known but not imported: tapetum models import FILE --name braai-d6-m7"),
        ("acai-h@1.0.0", "known but not imported"),
        ("What?", "not a model"),
        ("./here", "no such file"),
    ],
)
def test_what_cannot_be_found_comes_with_a_remedy(network, spec, message):
    imported(network)
    with pytest.raises(ModelError, match=message):
        find_model(spec)


# --- runtime ---


def change_card(folder, **changes):
    card = load_card(folder / "card.json")
    write_card(folder / "card.json", card.model_copy(update=changes))


def test_tampered_network_is_refused(network):
    done = imported(network)
    path = done.folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="sha256 is"):
        Model.load("mine")
    path.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        Model.load("mine")


def test_tampered_golden_vector_is_refused(network):
    done = imported(network)
    outputs = [list(row) for row in done.card.golden.outputs]
    outputs[3][0] += 1e-3
    golden = done.card.golden.model_copy(update={"outputs": tuple(map(tuple, outputs))})
    change_card(done.folder, golden=golden)
    with pytest.raises(ModelError, match=r"mine 1\.0\.0: golden vector 3 differs by 0\.001"):
        Model.load("mine")
    assert Model.load("mine", verify=False).card.name == "mine"


def test_another_normalisation_does_not_pass_the_golden_vectors(network):
    done = imported(network)
    images = done.card.images
    wrong = images.model_copy(
        update={"normalisation": images.normalisation.model_copy(update={"method": "row_l2"})}
    )
    change_card(done.folder, inputs=(wrong,))
    with pytest.raises(ModelError, match="golden vector"):
        Model.load("mine")


def test_card_of_another_network_is_refused(network):
    done = imported(network)
    images = done.card.images
    for changes, message in [
        ({"inputs": (images.model_copy(update={"name": "pixels"}),)}, "its card says pixels"),
        ({"inputs": (images.model_copy(update={"size": 9}),)}, r"its card says \(3, 9, 9\)"),
        ({"inputs": (images.model_copy(update={"layout": "nhwc"}),)}, r"its card says \(7, 7, 3\)"),
        ({"outputs": (done.card.outputs[0].model_copy(update={"name": "other"}),)}, "no output other"),
    ]:
        card = done.card.model_copy(update=changes)
        with pytest.raises(ModelError, match=message):
            Model(card, (done.folder / "model.onnx").read_bytes(), "here")
    with pytest.raises(ModelError, match="here: not a network"):
        Model(done.card, b"not onnx", "here")


def test_scores_do_not_depend_on_micro_batches(network, rng):
    done = imported(network)
    onnx_bytes = (done.folder / "model.onnx").read_bytes()
    x = {"images": rng.normal(0, 1, (37, 3, 7, 7)).astype(np.float32)}
    results = [
        Model(done.card.model_copy(update={"micro_batch": n}), onnx_bytes, "here").scores(x)
        for n in (1, 16, 64)
    ]
    assert results[0].shape == (37, 1)
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-6)
    with pytest.raises(ModelError, match="here"):
        Model(done.card, onnx_bytes, "here").scores({"images": np.zeros((2, 3, 8, 8), np.float32)})


def test_output_of_another_shape_is_refused():
    shape = [TensorProto.FLOAT, ["batch", 3, 7, 7]]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["score"])],
        "g",
        [helper.make_tensor_value_info("images", *shape)],
        [helper.make_tensor_value_info("score", *shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    card = ModelCard.model_validate(
        {
            "name": "odd",
            "version": "1.0.0",
            "title": "odd",
            "licence": "x",
            "authors": [],
            "source": {"description": "x"},
            "created": "2026-11-20",
            "onnx_sha256": "0" * 64,
            "training": {"description": "x"},
            "outputs": [{"name": "score", "columns": ["real"]}],
            "inputs": [
                {
                    "kind": "image",
                    "name": "images",
                    "size": 7,
                    "channels": ["science", "template", "difference"],
                    "normalisation": {"method": "stamp_l2"},
                    "padding": {"side": "centre"},
                }
            ],
        }
    )
    with pytest.raises(ModelError, match="output score has the shape"):
        Model(card, made.SerializeToString(), "odd").scores({"images": np.zeros((2, 3, 7, 7), np.float32)})
    with pytest.raises(ModelError, match="no golden vectors"):
        golden_inputs(card)


# --- golden vectors and calibration ---


def test_synthetic_stamps_never_change():
    """Exact integers pin the generator: golden vectors of published cards depend on it."""
    assert (uniforms(7, 1, 4) * 2**53).astype(np.int64).tolist() == UNIFORMS
    stamps, shapes = synthetic_stamps(SyntheticStamps(seed=7, count=6, size=21))
    assert shapes[3].tolist() == [[18, 14]] * 3
    assert np.isnan(stamps[3, :, 18:]).all()
    assert np.isnan(stamps[4, 1:, :5, 10:]).all()
    assert np.isfinite(stamps[[0, 1, 2, 5]]).all()
    # source above sky in the middle of a transient, and nowhere in its template
    assert stamps[0, 2, 9:12, 9:12].mean() > 20 > 5 > abs(stamps[0, 2, :5].mean())
    assert abs(stamps[0, 1, 8:13, 8:13].mean() - 120) < 3


UNIFORMS = [7511643646594943, 4920660264055896, 92374578790209, 710812614229547]


def test_stored_golden_stamps_work_like_synthetic_ones(network):
    done = imported(network)
    stamps, shapes = synthetic_stamps(done.card.golden.stamps)
    stored = StoredStamps(
        stamps=StoredArray.pack(stamps), shapes=tuple(tuple(map(tuple, row)) for row in shapes.tolist())
    )
    golden = Golden(stamps=stored, outputs=done.card.golden.outputs)
    change_card(done.folder, golden=golden)
    assert Model.load("mine").check_golden() <= 1e-5
    wrong = stored.model_copy(update={"shapes": (((99, 99),) * 3,) * 6})
    change_card(done.folder, golden=golden.model_copy(update={"stamps": wrong}))
    with pytest.raises(ModelError, match="larger than its array"):
        Model.load("mine")


def test_calibrations():
    score = np.array([0.0, 0.2, 0.5, 0.9, 1.0, np.nan])
    assert np.isnan(calibrate(score, NoCalibration())).all()
    half = calibrate(score, TemperatureCalibration(temperature=2.0))
    assert half[2] == 0.5
    assert half[3] == pytest.approx(0.75)  # odds 9 -> 3
    assert 0 < half[0] < 1e-3 < 1 - 1e-3 < half[4] < 1
    platt = calibrate(score, PlattCalibration(a=1.0, b=np.log(2.0)))
    assert platt[2] == pytest.approx(2 / 3)
    knots = calibrate(score, IsotonicCalibration(x=(0.2, 0.6), y=(0.1, 0.9)))
    assert knots[:5] == pytest.approx([0.1, 0.1, 0.7, 0.9, 0.9])
    for result in (half, platt, knots):
        assert np.isnan(result[5])
    logits = calibrate(np.array([-1e4, 0.0, 1e4]), PlattCalibration(a=1.0, b=0.0), scores_are_logits=True)
    assert logits.tolist() == [0.0, 0.5, 1.0]


# --- commands ---


def test_list_show_and_verify(network):
    done = imported(network)
    run = CliRunner().invoke
    rows = run(app, ["list"]).stdout.splitlines()
    assert any(row.split()[:3] == ["mine", "1.0.0", "imported"] for row in rows)
    assert any("braai-d6-m7" in row and "not imported" in row for row in rows)
    listed = json.loads(run(app, ["list", "--json"]).stdout)
    assert {"name", "version", "origin", "licence", "title"} == set(listed[0])
    assert ModelCard.model_validate_json(run(app, ["show", "mine"]).stdout) == done.card
    result = run(app, ["verify", "mine"])
    assert result.exit_code == 0
    assert "mine 1.0.0  ok" in result.stdout
    (done.folder / "model.onnx").write_bytes(b"")
    assert isinstance(run(app, ["verify", "mine"]).exception, ModelError)
    imported(network, name="fine")
    result = run(app, ["verify", "mine", "fine"])
    assert isinstance(result.exception, PartialFailureError)
    assert "fine 1.0.0  ok" in result.stdout
    assert "mine" in str(result.exception)
    assert run(app, ["verify"]).exit_code == 2
    assert run(app, ["verify", "--all", "mine"]).exit_code == 2


def test_a_damaged_card_does_not_hide_the_others(network):
    (imported(network).folder / "card.json").write_text("{}")
    imported(network, name="fine")
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert "fine" in result.stdout
    assert "mine 1.0.0" in result.stderr


def test_verify_without_golden_vectors_fails(network):
    done = imported(network)
    change_card(done.folder, golden=None)
    assert isinstance(CliRunner().invoke(app, ["verify", "mine"]).exception, ModelError)


def test_import_command(network):
    from tapetum.cli.app import app as root

    run = CliRunner().invoke
    options = [
        "--name",
        "cli",
        "--normalisation",
        "row_l2",
        "--channel-order",
        "difference, science,template",
    ]
    result = run(
        root,
        [
            "models",
            "import",
            str(network),
            *options,
            "--pad-side",
            "centre",
            "--pad-value",
            "1",
            "--pad-when",
            "before",
        ],
    )
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "cli 1.0.0 imported" in result.stderr
    images = Model.load("cli").card.images
    assert (images.channels[0], images.padding.when, images.normalisation.method) == (
        "difference",
        "before",
        "row_l2",
    )
    assert isinstance(run(app, ["import", str(network), "--name", "other"]).exception, InputError)
    assert run(app, ["import", str(network)]).exit_code == 2


# --- files that crash their reader ---

CRASHING_H5PY = """
import os, signal
File = Group = Dataset = None
def is_hdf5(path):
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def test_what_is_read_apart_is_what_is_in_the_file(network):
    apart, here = read_apart(network), read_keras_h5(network)
    assert apart.weights_sha256() == here.weights_sha256()
    assert [layer.config for layer in apart.layers] == [layer.config for layer in here.layers]
    wrong = network.with_suffix(".txt")
    shutil.copy(network, wrong)
    with pytest.raises(FormatError, match=r"net\.txt: the suffix is not"):
        read_apart(wrong)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (partial(signal.raise_signal, signal.SIGSEGV), "by signal 11"),
        (partial(os._exit, 7), "with status 7"),
    ],
)
def test_a_reader_that_dies_is_one_sentence_about_the_file(network, end, how):
    with pytest.raises(FormatError, match=rf"net\.h5: nobody can read it \(.* {how}\); the file is damaged"):
        read_apart(network, end)


def test_a_file_that_crashes_hdf5_does_not_crash_the_command(network, tmp_path):
    (tmp_path / "crashing").mkdir()
    (tmp_path / "crashing" / "h5py.py").write_text(CRASHING_H5PY)
    command = [Path(sys.executable).with_name("tapetum"), "models", "import", network, "--name", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "crashing")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == FormatError.exit_code
    assert done.stderr.count("\n") == 1
    assert f"{network}: nobody can read it" in done.stderr
    assert not (imported_dir() / "mine").exists()


def test_the_runtime_reports_to_nobody(tmp_path):
    code = "import os; from tapetum.models.runtime import Model; Model.load('realbogus')"
    code += "; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "quiet"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "1"
    assert [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()] == []
    importers = [
        p.name for p in Path(tapetum.__file__).parent.rglob("*.py") if "import onnxruntime" in p.read_text()
    ]
    assert importers == ["_ort.py"]


def test_a_session_has_one_thread():
    options = Model.load("realbogus")._runner.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
