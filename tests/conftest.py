"""Shared fixtures."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import io
import os
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real survey data: $TAPETUM_TEST_DATA, else ../shared/data beside the project."""
    named = os.environ.get("TAPETUM_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "alerts").is_dir():
        pytest.skip(f"no real data: {folder} has no alerts/; point TAPETUM_TEST_DATA at a copy")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that fails again when it failed once."""
    return np.random.default_rng(20260)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's settings, models or downloads."""
    for name in ("cache", "config"):
        (tmp_path / name).mkdir()  # astropy warns when a named folder is not there
        monkeypatch.setenv(f"XDG_{name.upper()}_HOME", str(tmp_path / name))


class Vizier(http.server.BaseHTTPRequestHandler):
    """Answers like VizieR's VOTable service and remembers the question."""

    questions: list[dict[str, list[str]]]
    answer: bytes
    status = 200

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        query = {}
        for line in body.splitlines():
            for key, value in urllib.parse.parse_qsl(line.strip(), keep_blank_values=True):
                query.setdefault(key, []).append(value)
        self.questions.append({"path": [self.path], **query, "body": [body]})
        self.send_response(self.status)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *args):
        pass

    @staticmethod
    def votable(table):
        """A table as VizieR would send it."""
        from astropy.io.votable import from_table, writeto

        tree = from_table(table)
        tree.get_first_table().name = "some/table"
        out = io.BytesIO()
        writeto(tree, out)
        return out.getvalue()


@pytest.fixture
def vizier():
    """A server on this machine that answers like VizieR: set ``answer``, read ``questions``, ask at ``url``."""
    pytest.importorskip("astroquery")
    handler = type("Handler", (Vizier,), {"questions": [], "answer": b""})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        handler.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()
        thread.join()


@pytest.fixture
def kowalski():
    """A server on this machine that answers like Kowalski: fill ``catalogues``, read ``asked``, ask at ``url``."""
    path = Path(__file__).with_name("kowalski_server.py")
    spec = importlib.util.spec_from_file_location("kowalski_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.running() as server:
        server.user, server.password = module.USER, module.PASSWORD
        yield server


def _sharp() -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias that call a pixel a particle's which is far brighter than most of its neighbours."""
    weight, bias = np.zeros((14, 1, 3, 3), np.float32), np.full(14, -20, np.float32)
    weight[0], bias[0] = -0.25, -8
    weight[0, 0, 1, 1] = 1
    return weight, bias


def _write_network(
    folder: Path,
    name: str = "sharp",
    *,
    version: str = "1.0.0",
    convolution: tuple[np.ndarray, np.ndarray] | None = None,
    prior: float = 0.1,
    threshold: float = 0.5,
) -> Path:
    """A network of one convolution and a sigmoid, with maps of the 14 classes, and its card.

    `convolution`: kernel (14, 1, k, k) and bias (14,), k odd; None takes `_sharp`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from tapetum.images.contaminants import NAMES, TITLES, code_of
    from tapetum.models.card import ModelCard, write_card
    from tapetum.models.registry import CARD_NAME, ONNX_NAME

    folder.mkdir(parents=True, exist_ok=True)
    weight, bias = convolution or _sharp()
    reach = weight.shape[-1] // 2
    nodes = [
        helper.make_node("Conv", ["frame", "weight", "bias"], ["logits"], pads=[reach] * 4),
        helper.make_node("Sigmoid", ["logits"], ["maps"]),
    ]
    constants = [numpy_helper.from_array(values, key) for key, values in (("weight", weight), ("bias", bias))]
    ports = [
        helper.make_tensor_value_info(port, TensorProto.FLOAT, ["n", depth, "y", "x"])
        for port, depth in (("frame", 1), ("maps", 14))
    ]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(network)
    raw = network.SerializeToString()
    card = {
        "name": name, "version": version, "title": "a test", "finder": "contaminants", "licence": "BSD-3-Clause",
        "authors": ["nobody"], "source": {"description": "made up"}, "created": "2026-11-20",
        "inputs": [{"kind": "frame", "name": "frame", "multiple": 32, "margin": 2}],
        "outputs": [{"name": "maps", "columns": list(NAMES), "activation": "sigmoid", "per": "pixel"}],
        "classes": [
            {"name": key, "title": TITLES[key], "code": code_of(key), "training_prior": 0.1, "prior": prior,
             "threshold": threshold}
            for key in NAMES
        ],
        "training": {"description": "none"}, "onnx_sha256": hashlib.sha256(raw).hexdigest(),
    }  # fmt: skip
    (folder / ONNX_NAME).write_bytes(raw)
    write_card(folder / CARD_NAME, ModelCard.model_validate(card))
    return folder


@pytest.fixture(scope="session")
def write_network() -> Callable[..., Path]:
    """Writes a network for contaminants that knows sharp pixels, into a folder, under a name."""
    return _write_network
