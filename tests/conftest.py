"""Shared fixtures."""

from __future__ import annotations

import http.server
import io
import os
import threading
import urllib.parse
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
