"""Pinned files through pip's own configuration, against a package index on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tapetum.core import package_index
from tapetum.core.errors import FormatError, LimitError, NetworkError, TapetumError, UsageError
from tapetum.core.http import HttpClient, Patience
from tapetum.core.package_index import PinnedFile, PinnedMember, fetch_file, fetch_members, find_links, unpack
from tapetum.core.samples import SAMPLES, fetch_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONTENT = b"photons " * 1000
MEMBER = PinnedMember("pack-1.0/data/stars.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def tar_of(*entries: tuple[str, bytes | str]) -> bytes:
    """A .tar.gz of (path, bytes) files and (path, target) symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as container:
        for path, content in entries:
            info = tarfile.TarInfo(path)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                container.addfile(info)
            else:
                info.size = len(content)
                container.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pin(body: bytes, filename: str = "pack-1.0.tar.gz") -> PinnedFile:
    return PinnedFile("pack", filename, hashlib.sha256(body).hexdigest(), len(body))


@dataclass
class Index:
    """What the index on this machine serves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    announced: dict[str, str] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)
    busy: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def add(self, body: bytes, filename: str = "pack-1.0.tar.gz") -> PinnedFile:
        self.files[filename] = body
        self.announced[filename] = hashlib.sha256(body).hexdigest()
        return pin(body, filename)


class Handler(http.server.BaseHTTPRequestHandler):
    index: Index

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if self.path == "/simple/pack/":
            links = "".join(
                f'<a href="/files/{entry}#sha256={digest}">{entry}</a><br>'
                for entry, digest in self.index.announced.items()
            )
            self.answer(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
        elif self.path.startswith("/files/") and name in self.index.files:
            if self.index.busy:
                self.answer(self.index.busy.pop(), b"later")
            else:
                self.answer(200, self.index.files[name], cut=name in self.index.truncated)
        else:
            self.answer(404, b"nothing here")

    def answer(self, status: int, body: bytes, kind: str = "application/gzip", *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if kind == "application/gzip":  # as careless servers do
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()
    handler = type("BoundHandler", (Handler,), {"index": served})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/simple"
        only_this_index(monkeypatch, served.url)
        yield served
        server.shutdown()
        thread.join()


def only_this_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same client without the pauses."""

    def impatient(**options: Any) -> HttpClient:
        return HttpClient(Patience(connect_s=2, read_s=2, attempts=3, pause_s=0), **options)

    monkeypatch.setattr(package_index, "HttpClient", impatient)


def test_member_is_fetched_once_and_then_cached(index: Index, tmp_path: Path) -> None:
    pinned = index.add(tar_of(("pack-1.0/setup.py", b"raise SystemExit('executed')"), (MEMBER.path, CONTENT)))
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "cache"
    [path] = fetch_members(pinned, [MEMBER], folder, lambda done, total: seen.append((done, total)))
    assert path == folder / "stars.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (pinned.n_bytes, pinned.n_bytes)
    assert [entry.name for entry in folder.iterdir()] == ["stars.bin"]
    index.asked.clear()
    assert fetch_members(pinned, [MEMBER], folder) == [path]
    assert index.asked == []
    path.write_bytes(b"damaged")
    fetch_members(pinned, [MEMBER], folder)
    assert path.read_bytes() == CONTENT


def test_busy_server_is_asked_again(index: Index, tmp_path: Path, quick: None) -> None:
    pinned = index.add(tar_of((MEMBER.path, CONTENT)))
    index.busy = [503, 429]
    fetch_file(pinned, tmp_path / "pack.tar.gz")
    assert index.asked.count("/files/pack-1.0.tar.gz") == 3


def test_wrong_hash_is_not_kept(index: Index, tmp_path: Path) -> None:
    pinned = index.add(tar_of((MEMBER.path, CONTENT)))
    index.files[pinned.filename] = index.files[pinned.filename][:-1] + b"!"
    target = tmp_path / "pack.tar.gz"
    with pytest.raises(FormatError, match=r"not the pinned"):
        fetch_file(pinned, target)
    assert list(tmp_path.glob("pack*")) == []
    index.announced[pinned.filename] = "0" * 64
    with pytest.raises(FormatError, match=r"announces other content"):
        fetch_file(pinned, target)


def test_truncated_body_is_a_network_error(index: Index, tmp_path: Path, quick: None) -> None:
    pinned = index.add(tar_of((MEMBER.path, CONTENT)))
    index.truncated.add(pinned.filename)
    with pytest.raises(NetworkError, match=r"pack-1\.0\.tar\.gz: .*tried 3 times"):
        fetch_file(pinned, tmp_path / "pack.tar.gz")
    assert list(tmp_path.glob("pack*")) == []


def test_larger_file_than_pinned_is_refused(index: Index, tmp_path: Path) -> None:
    pinned = replace(index.add(tar_of((MEMBER.path, CONTENT))), n_bytes=10)
    with pytest.raises(LimitError, match="at most 10"):
        fetch_file(pinned, tmp_path / "pack.tar.gz")


def test_missing_project_and_unreachable_index_name_the_remedy(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = pin(b"never there")
    with pytest.raises(NetworkError, match="pip config list"):
        find_links(pinned)
    only_this_index(monkeypatch, "http://127.0.0.1:1/simple")  # port 1: nothing listens
    with pytest.raises(NetworkError, match="pip config list"):
        fetch_members(pinned, [MEMBER], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_folder_named_pip_is_not_executed(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text("raise SystemExit('executed')")
    monkeypatch.chdir(tmp_path)
    pinned = index.add(tar_of((MEMBER.path, CONTENT)))
    assert find_links(pinned) == [index.url.replace("/simple", "/files/pack-1.0.tar.gz")]


def test_file_links_are_copied(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "my wheels"
    wheels.mkdir()
    body = tar_of((MEMBER.path, CONTENT))
    (wheels / "pack-1.0.tar.gz").write_bytes(body)
    monkeypatch.setenv("PIP_FIND_LINKS", wheels.as_uri())
    fetch_file(pin(body), tmp_path / "copy.tar.gz")
    assert (tmp_path / "copy.tar.gz").read_bytes() == body
    assert not [path for path in index.asked if path.startswith("/files/")]
    (wheels / "pack-1.0.tar.gz").write_bytes(body[::-1])
    with pytest.raises(FormatError, match="not the pinned"):
        fetch_file(pin(body), tmp_path / "other.tar.gz")


def test_wheels_are_archives_too(tmp_path: Path) -> None:
    archive = tmp_path / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr(MEMBER.path, CONTENT)
    [path] = unpack(archive, [MEMBER], tmp_path / "out")
    assert path.read_bytes() == CONTENT


def bomb_tar(path: Path) -> None:
    path.write_bytes(tar_of((MEMBER.path, bytes(50_000_000))))


def bomb_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as container:
        container.writestr(MEMBER.path, bytes(50_000_000))


def link_out(path: Path) -> None:
    path.write_bytes(tar_of((MEMBER.path, "/etc/passwd")))


def climbing(path: Path) -> None:
    path.write_bytes(tar_of(("../stars.bin", CONTENT), ("/pack-1.0/data/stars.bin", CONTENT)))


def other_content(path: Path) -> None:
    path.write_bytes(tar_of((MEMBER.path, CONTENT[::-1])))


def cut(path: Path) -> None:
    path.write_bytes(tar_of((MEMBER.path, CONTENT))[:60])


def no_archive(path: Path) -> None:
    path.write_bytes(b"<html>sign in first</html>")


@pytest.mark.parametrize(
    ("make", "problem", "words"),
    [
        (bomb_tar, LimitError, "larger than 8000 bytes"),
        (bomb_wheel, LimitError, "larger than 8000 bytes"),
        (link_out, FormatError, "has no plain file"),
        (climbing, FormatError, "has no plain file"),
        (other_content, FormatError, "has SHA-256"),
        (cut, FormatError, "not a readable archive"),
        (no_archive, FormatError, "not a readable archive"),
    ],
)
def test_hostile_archives_leave_nothing(
    tmp_path: Path, make: Callable[[Path], None], problem: type[TapetumError], words: str
) -> None:
    archive = tmp_path / "pack-1.0.tar.gz"
    make(archive)
    out = tmp_path / "deep" / "out"
    with pytest.raises(problem, match=words):
        unpack(archive, [MEMBER], out)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]


def test_samples_are_pinned_completely() -> None:
    for sample in SAMPLES.values():
        for entry in (sample.archive, *sample.members):
            assert len(entry.sha256) == 64
            assert entry.n_bytes > 0
        assert len({member.name for member in sample.members}) == len(sample.members)
    with pytest.raises(UsageError, match="ztf-alerts"):
        fetch_sample("andromeda")


def test_only_harmless_requests_are_repeated() -> None:
    asked: list[str] = []
    pauses: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        assert request.headers["User-Agent"].startswith("tapetum/")
        return httpx.Response(503, headers={"Retry-After": "7"} if len(asked) == 1 else {})

    patience = Patience(attempts=3, pause_s=1)
    with HttpClient(patience, transport=httpx.MockTransport(answer), sleep=pauses.append) as client:
        with pytest.raises(
            NetworkError, match=r"GET http://survey/x: the server answered 503.*tried 3 times"
        ):
            client.request("GET", "http://survey/x")
        assert pauses == [7, 2]
        with pytest.raises(NetworkError, match="503"):
            client.request("POST", "http://survey/x")
    assert asked == ["GET", "GET", "GET", "POST"]


@pytest.mark.parametrize("announced", ["many", "-3", "1e3", "", "9" * 5000])
def test_nonsense_announced_as_length_does_not_matter(announced: str, tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Length": announced}, stream=httpx.ByteStream(CONTENT))

    sha256 = hashlib.sha256(CONTENT).hexdigest()
    with HttpClient(transport=httpx.MockTransport(answer)) as client:
        client.download("http://survey/x", tmp_path / "x", sha256=sha256, max_bytes=len(CONTENT))
        assert (tmp_path / "x").read_bytes() == CONTENT
        with pytest.raises(LimitError, match="more than the 3 bytes"):
            client.download("http://survey/x", tmp_path / "y", sha256=sha256, max_bytes=3)
    assert not (tmp_path / "y").exists()


def test_body_that_does_not_decode_is_a_network_error() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        stream = httpx.ByteStream(b"not gzip")
        return httpx.Response(200, headers={"Content-Encoding": "gzip"}, stream=stream)

    with (
        HttpClient(transport=httpx.MockTransport(answer)) as client,
        pytest.raises(NetworkError, match="GET http://survey/x"),
    ):
        client.request("GET", "http://survey/x")


def test_a_plain_no_is_not_repeated() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(404)

    with (
        HttpClient(transport=httpx.MockTransport(answer)) as client,
        pytest.raises(NetworkError, match="404"),
    ):
        client.request("GET", "http://survey/x")
    assert asked == ["GET"]
