"""A server on this machine that answers as Kowalski does: shapes, oddities and errors of its HTTP interface."""

from __future__ import annotations

import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Document = dict[str, Any]
USER, PASSWORD = "vera", "p&ss:word"
UNITS = {"arcsec": math.pi / 648000, "arcmin": math.pi / 10800, "deg": math.pi / 180, "rad": 1.0}


class RefusedError(Exception):
    """Becomes a 400 with the name and text of what a handler of the original raises."""


class FakeKowalski:
    """What the server has, what it was asked, and what it is to do wrong."""

    def __init__(self) -> None:
        self.url = ""
        self.catalogues: dict[str, list[Document]] = {}
        self.asked: list[Document] = []
        self.headers: list[str | None] = []
        self.valid: set[str] = set()
        self.logins = 0
        self.at_once = self.most_at_once = 0
        self.faults: list[tuple[int, bytes]] = []  # answers of the next queries, before any thinking
        self.fault_of: Callable[[Document], tuple[int, bytes] | None] = lambda body: None
        self.seconds = 0.0
        self.lock = threading.Lock()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """How many questions are worked on at the same time."""
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            with self.lock:
                self.at_once -= 1

    def find(self, catalogue: str, wanted: Document) -> list[Document]:
        if catalogue == "users":
            raise RefusedError("AttributeError: Protected collection users")
        found = self.catalogues.get(catalogue, [])  # MongoDB: a catalogue that is not there is empty
        return [document for document in found if matches(document, wanted)]

    def answer(self, body: Document) -> Any:
        kind, query, options = body["query_type"], body["query"], body.get("kwargs", {})
        if kind == "info" and query["command"] == "catalog_names":
            return sorted(self.catalogues, reverse=True)
        if kind == "find":
            found = self.find(query["catalog"], query["filter"])
            return [shown(d, query.get("projection", {})) for d in page(found, options)]
        if kind == "count_documents":
            return len(self.find(query["catalog"], query["filter"]))
        if kind in ("cone_search", "near"):
            return self.positions(kind, query, options)
        raise RefusedError(f'KeyError: "query_type {kind} not in (...)"')

    def positions(self, kind: str, query: Document, options: Document) -> Any:
        if kind == "near":
            unit, radec = query["distance_units"], query["radec"]
            low, high = query["min_distance"], query["max_distance"]
        else:
            where = query["object_coordinates"]
            unit, radec = where["cone_search_unit"], where["radec"]
            low, high = 0.0, where["cone_search_radius"]
        out: Document = {}
        for name, selection in query["catalogs"].items():
            out[name] = {}
            for key, (ra, dec) in radec.items():
                found = self.find(name, selection["filter"])
                apart = {
                    id(d): separation(ra, dec, *d["coordinates"]["radec_geojson"]["coordinates"])
                    for d in found
                }
                near = [d for d in found if low * UNITS[unit] <= apart[id(d)] <= high * UNITS[unit]]
                near.sort(key=lambda d: apart[id(d)], reverse=kind == "cone_search")  # a cone has no order
                rows = page(near, options)
                out[name][key.replace(".", "_")] = [shown(d, selection["projection"]) for d in rows]
        return out


def separation(ra: float, dec: float, lon: float, lat: float) -> float:
    """Angle [rad] to a GeoJSON position, which has RA - 180 (haversine)."""
    a1, d1, a2, d2 = map(math.radians, (ra, dec, lon + 180.0, lat))
    h = math.sin((d2 - d1) / 2) ** 2 + math.cos(d1) * math.cos(d2) * math.sin((a2 - a1) / 2) ** 2
    return 2 * math.asin(math.sqrt(h))


def matches(document: Document, wanted: Document) -> bool:
    """The part of MongoDB's filters that clients use."""
    tests = {
        "$eq": lambda a, b: a == b,
        "$in": lambda a, b: a in b,
        "$gt": lambda a, b: a is not None and a > b,
        "$gte": lambda a, b: a is not None and a >= b,
        "$lt": lambda a, b: a is not None and a < b,
        "$lte": lambda a, b: a is not None and a <= b,
    }
    for key, rule in wanted.items():
        value = document.get(key)
        rules = rule if isinstance(rule, dict) else {"$eq": rule}
        if not all(tests[name](value, other) for name, other in rules.items()):
            return False
    return True


def shown(document: Any, projection: Document) -> Any:
    """What an including projection leaves, dotted paths and lists of documents included; `_id` stays unless it is 0."""
    if not projection:
        return document
    tree: Document = {}
    for path, wanted in projection.items():
        if wanted:
            branch = tree
            *parents, leaf = path.split(".")
            for key in parents:
                branch = branch.setdefault(key, {})
            branch[leaf] = True
    if projection.get("_id", 1):
        tree["_id"] = True
    return _pick(document, tree)


def _pick(value: Any, tree: Any) -> Any:
    if tree is True:
        return value
    if isinstance(value, list):
        return [_pick(item, tree) for item in value if isinstance(item, dict)]
    return {key: _pick(value[key], branch) for key, branch in tree.items() if key in value}


def page(documents: list[Document], options: Document) -> list[Document]:
    """Sort, skip, limit."""
    for key, direction in reversed(options.get("sort", [])):
        documents = sorted(documents, key=lambda d, k=key: d[k], reverse=direction < 0)
    documents = documents[options.get("skip", 0) :]
    return documents[: options["limit"]] if options.get("limit") else documents


def extended(value: Any) -> Any:
    """Non-finite numbers as relaxed extended JSON has them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$numberDouble": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: extended(item) for key, item in value.items()}
    return [extended(item) for item in value] if isinstance(value, list) else value


class Handler(http.server.BaseHTTPRequestHandler):
    """Requests to one server."""

    fake: FakeKowalski
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def token_fault(self) -> str | None:
        header = self.headers.get("Authorization")
        self.fake.headers.append(header)
        token = (header or "").removeprefix("Bearer ")
        if not token:
            return "Unauthorized"
        return (
            None
            if token in self.fake.valid
            else "token has expired"
            if token.startswith("jwt")
            else "token is invalid"
        )

    def guarded(self) -> bool:
        fault = self.token_fault()
        if fault:
            self.reply(401 if fault == "Unauthorized" else 400, {"status": "error", "message": fault})
        return fault is None

    def do_GET(self) -> None:
        if self.guarded():
            self.reply(200, {"status": "success", "message": "greetings from Kowalski!"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/api/auth":
            self.log_in(body)
        elif self.path == "/api/queries":
            if self.guarded():
                with self.fake.counted():
                    self.query(body)
        else:
            self.reply(404, {"status": "error", "message": "Not Found"})

    def log_in(self, body: Document) -> None:
        if "username" not in body or "password" not in body:
            self.reply(400, {"status": "error", "message": "missing username or password"})
        elif (body["username"], body["password"]) != (USER, PASSWORD):
            self.reply(401, {"status": "error", "message": "Unauthorized"})
        else:
            with self.fake.lock:
                self.fake.logins += 1
                token = f"jwt-{self.fake.logins}"
                self.fake.valid.add(token)
            self.reply(200, {"status": "success", "token": token})

    def query(self, body: Document) -> None:
        with self.fake.lock:
            self.fake.asked.append(body)
            fault = self.fake.faults.pop(0) if self.fake.faults else self.fake.fault_of(body)
        time.sleep(self.fake.seconds)
        if fault:
            self.reply(*fault)
            return
        try:
            data = extended(self.fake.answer(body))
        except RefusedError as problem:
            self.reply(400, {"status": "error", "message": str(problem)})
            return
        self.reply(200, {"status": "success", "message": "Successfully executed query", "data": data})

    def log_message(self, *args: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True  # connections that clients keep open end with the test
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no fault."""


@contextmanager
def running() -> Iterator[FakeKowalski]:
    """A server for the time of a test."""
    fake = FakeKowalski()
    handler = type("OneHandler", (Handler,), {"fake": fake})
    with _Server(("127.0.0.1", 0), handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield fake
        server.shutdown()
        thread.join()
