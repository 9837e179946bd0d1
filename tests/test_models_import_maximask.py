"""MaxiMask and MaxiTrack in: from the package index, from copies, what is refused; and the real weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from tapetum.cli.app import app
from tapetum.core.errors import FormatError, InputError, ModelError, NetworkError
from tapetum.core.package_index import PinnedFile, PinnedMember
from tapetum.images.contaminants import NAMES, TITLES, code_of
from tapetum.models import maximask
from tapetum.models.card import CardTemplate, Golden, SyntheticFrames, load_card
from tapetum.models.golden import synthetic_frames
from tapetum.models.maximask import import_arrays, import_copy, import_published
from tapetum.models.registry import PUBLISHED, find_model, imported_dir, load_template
from tapetum.models.runtime import Model
from tapetum.models.tf_bundle import arrays_sha256

END = "/.ATTRIBUTES/VARIABLE_VALUE"


def sibling(name):
    """Another module of tests."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*words):
    return CliRunner().invoke(app, ["models", *map(str, words)])


# --- a small network in the place of MaxiTrack ---

RECIPE = SyntheticFrames(seed=3, count=2, size=32)


def tiny_onnx(arrays):
    """Mean of the frame, times the kernel."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["frame"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "kernel"], ["product"]),
            helper.make_node("Softmax", ["product"], ["probability"], axis=-1),
        ],
        "tiny",
        [value("frame", TensorProto.FLOAT, ["batch", 1, 32, 32])],
        [value("probability", TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(arrays["dense1/kernel"], "kernel")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def tiny_template(arrays):
    means = synthetic_frames(RECIPE).mean(axis=(1, 2, 3), dtype=np.float64)
    powers = np.exp(means[:, None] * arrays["dense1/kernel"][0])
    outputs = powers / powers.sum(axis=1, keepdims=True)
    return CardTemplate.model_validate(
        {
            "name": "maxitrack",
            "version": "1.0.0",
            "title": "tiny",
            "licence": "MIT",
            "authors": [],
            "source": {"description": "made up"},
            "created": "2026-11-20",
            "inputs": [{"kind": "frame", "name": "frame", "side": 32}],
            "outputs": [{"name": "probability", "columns": ["good", "bad"], "activation": "softmax"}],
            "training": {"description": "none"},
            "golden": Golden(frames=RECIPE, outputs=tuple(map(tuple, outputs.tolist()))).model_dump(),
            "weights_sha256": arrays_sha256(arrays),
        }
    )


def tiny_arrays(seed):
    return {"dense1/kernel": np.random.default_rng(seed).normal(0, 3, (1, 2)).astype(np.float32)}


def write_model(folder, arrays, writer):
    keys = {name: name + END for name in arrays}
    tree = {}
    for name, key in keys.items():
        layer, kind = name.split("/")
        tree.setdefault(layer, {}).update({"activation": {"alpha": key}} if kind == "prelu" else {kind: key})
    writer.write_bundle(folder / "variables", {keys[name]: arrays[name] for name in arrays}, tree)
    (folder / "saved_model.pb").write_bytes(b"never read")
    return folder


def pin(path):
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), len(content)


def publish(folder, model, monkeypatch):
    """A wheel with the model, pinned, in the only place that pip is told to look at."""
    inside = "maximask_and_maxitrack/maxitrack/model/variables/"
    wheel = folder / maximask.PACKAGE.filename
    folder.mkdir()
    files = [model / "variables" / name for name in ("variables.index", "variables.data-00000-of-00001")]
    with zipfile.ZipFile(wheel, "w") as container:
        container.writestr("maximask_and_maxitrack/__init__.py", "raise SystemExit('executed')")
        for path in files:
            container.write(path, inside + path.name)
    monkeypatch.setattr(maximask, "PACKAGE", PinnedFile("MaxiMask", wheel.name, *pin(wheel)))
    members = tuple(PinnedMember(inside + path.name, *pin(path)) for path in files)
    monkeypatch.setitem(maximask.MEMBERS, "maxitrack", members)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    return wheel


@pytest.fixture(scope="module")
def writer():
    return sibling("test_models_tf_bundle")


@pytest.fixture
def tiny(tmp_path, monkeypatch, writer):
    """Folder of a SavedModel that counts as MaxiTrack's."""
    arrays = tiny_arrays(1)
    template = tiny_template(arrays)
    monkeypatch.setattr(maximask, "load_template", lambda name: template)
    monkeypatch.setitem(maximask.BUILDERS, "maxitrack", tiny_onnx)
    return write_model(tmp_path / "model", arrays, writer)


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_the_published_network_is_fetched_once(tiny, tmp_path, monkeypatch):
    wheel = publish(tmp_path / "index", tiny, monkeypatch)
    result = run("import", "maxitrack")
    assert result.exit_code == 0, result.exception
    assert result.stdout == ""
    assert "maxitrack 1.0.0 imported" in result.stderr
    folder = find_model("maxitrack").onnx.parent
    before = contents(folder)
    card = load_card(folder / "card.json")
    assert (card.source.file, card.source.sha256) == (
        "variables.data-00000-of-00001",
        pin(tiny / "variables" / "variables.data-00000-of-00001")[0],
    )
    wheel.unlink()
    for named in ((), ("--name", "maxitrack")):
        again = run("import", "maxitrack", *named)
        assert again.exit_code == 0
        assert "already imported" in again.stderr
    assert contents(folder) == before
    assert run("verify", "maxitrack").stdout.startswith("maxitrack 1.0.0  ok")
    # damaged, it is made again from what was kept of the package
    (folder / "model.onnx").write_bytes(b"")
    assert import_published("maxitrack", imported_dir(), tmp_path / "cache" / "tapetum" / "packages").new
    assert Model.load("maxitrack").check_golden() < 1e-6


def test_without_the_package_there_is_one_sentence(tiny, tmp_path, monkeypatch):
    publish(tmp_path / "index", tiny, monkeypatch).unlink()
    with pytest.raises(NetworkError, match=r"MaxiMask-1\.4\.1.*no package index"):
        import_published("maxitrack", imported_dir(), tmp_path / "kept")
    assert not (imported_dir() / "maxitrack").exists()


def test_copies_are_the_same_network(tiny, tmp_path, monkeypatch):
    wheel = publish(tmp_path / "index", tiny, monkeypatch)
    first = import_copy(tiny, "maxitrack", imported_dir())
    assert first.new
    before = contents(first.folder)
    for path in (tiny / "variables", tiny / "variables" / "variables.index", wheel):
        assert not import_copy(path, "maxitrack", imported_dir()).new
        assert run("import", path, "--name", "maxitrack").exit_code == 0
    assert not import_published("maxitrack", imported_dir(), tmp_path / "kept").new
    assert not (tmp_path / "kept").exists()
    # the same weights written by someone else
    source = {"file": "mine.npz", "sha256": "0" * 64}
    assert not import_arrays(tiny_arrays(1), "maxitrack", source, imported_dir(), tmp_path).new
    assert contents(first.folder) == before


def test_other_weights_are_refused(tiny, tmp_path, writer):
    other = write_model(tmp_path / "other", tiny_arrays(2), writer)
    with pytest.raises(InputError, match="not the weights of maxitrack"):
        import_copy(other, "maxitrack", imported_dir())
    assert not (imported_dir() / "maxitrack").exists()


def test_a_network_that_answers_otherwise_is_refused(tiny, monkeypatch):
    monkeypatch.setitem(
        maximask.BUILDERS, "maxitrack", lambda arrays: tiny_onnx({"dense1/kernel": -arrays["dense1/kernel"]})
    )
    with pytest.raises(ModelError, match="golden vector"):
        import_copy(tiny, "maxitrack", imported_dir())
    assert not (imported_dir() / "maxitrack").exists()


def test_what_cannot_be_read_is_named(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.whl"
    text.write_text("no archive")
    for path, kind, words in (
        (empty, InputError, "has no variables.index"),
        (tmp_path / "nowhere", InputError, "no such file or folder; .*tapetum models import maximask"),
        (text, FormatError, "not a readable archive"),
    ):
        with pytest.raises(kind, match=words):
            import_copy(path, "maximask", imported_dir())


def test_the_command_wants_a_name_or_nothing_more(tmp_path):
    file = tmp_path / "net.h5"
    file.write_bytes(b"never read")
    assert run("import", file).exit_code == 2
    assert run("import", "maximask", "--licence", "MIT").exit_code == 2
    assert run("import", "maximask", "--name", "maximask", "--licence", "MIT").exit_code == 2
    result = run("import", "maximask", "--name", "maxitrack")
    assert "no such file" in str(result.exception)
    result = run("import", file, "--name", "maximask", "--size", "3")
    assert isinstance(result.exception, InputError)
    assert "leave the options away" in str(result.exception)


def test_what_is_not_imported_says_how():
    with pytest.raises(ModelError, match=r"tapetum models import maximask$"):
        find_model("maximask")
    rows = json.loads(run("list", "--json").stdout)
    assert {"maximask", "maxitrack"} <= {row["name"] for row in rows if row["origin"] == "not imported"}


# --- the cards ---


def test_the_cards_say_what_the_tool_says():
    card = load_template("maximask")
    assert card.finder == "contaminants"
    assert card.outputs[0].columns == NAMES == tuple(entry.name for entry in card.classes)
    assert [entry.code for entry in card.classes] == [code_of(name) for name in NAMES]
    assert [entry.title for entry in card.classes] == [TITLES[name] for name in NAMES]
    assert sum(entry.training_prior for entry in card.classes) == pytest.approx(1.152)
    assert [entry.prior for entry in card.classes][:5] == [5e-4, 1e-5, 1e-4, 1e-6, 1e-6]
    assert [entry.threshold for entry in card.classes][-3:] == [0.55, 0.44, 0.27]
    assert (card.frame.multiple, card.frame.side, card.frame.margin) == (32, None, 156)
    card = load_template("maxitrack")
    assert card.finder == "tracking"
    assert card.frame.side == 400
    assert [(entry.name, entry.training_prior, entry.prior) for entry in card.classes][1] == (
        "tracking_error",
        0.5,
        0.05,
    )
    for name in PUBLISHED:
        assert "2018 Maxime Paillassa" in " ".join(load_template(name).notes)


def test_the_page_has_the_table_of_the_card():
    page = Path(__file__).parents[1] / "docs" / "models" / "maximask.md"
    rows = re.findall(r"^\| ([A-Z]+) \| (.*) \| (.*) \| (.*) \| (.*) \|$", page.read_text(), re.MULTILINE)
    assert [(row[0], *map(float, row[1:])) for row in rows] == [
        (entry.name, entry.code, entry.training_prior, entry.prior, entry.threshold)
        for entry in load_template("maximask").classes
    ]


# --- the real weights ---


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_weights_become_the_real_network(real_data, tmp_path, writer, name, monkeypatch):
    """The golden outputs of the card were computed apart, in double precision, from the same arrays."""
    monkeypatch.setattr(writer, "masked", writer.masked_crc32c)
    with np.load(real_data / "maximask" / f"{name}_weights.npz") as stored:
        folder = write_model(tmp_path / "model", dict(stored), writer)
    done = import_copy(folder, name, imported_dir())
    assert done.new
    assert Model.load(name).check_golden() < 1e-5
    assert load_card(done.folder / "card.json").classes == load_template(name).classes
    other = "maxitrack" if name == "maximask" else "maximask"
    with pytest.raises(InputError, match=f"these are the weights of {name}, not of {other}"):
        import_copy(folder, other, imported_dir())
