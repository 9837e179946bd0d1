"""The one HTTP client: time limits, retries with growing pauses, whole downloads, errors with the URL."""

from __future__ import annotations

import hashlib
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import certifi
import httpx

from tapetum import __version__
from tapetum.core.errors import FormatError, LimitError, NetworkError
from tapetum.core.files import whole_file
from tapetum.core.progress import Progress, no_progress

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
WORTH_RETRYING = frozenset({429, 500, 502, 503, 504})
KEEPS_BODY = frozenset({307, 308})  # redirects that repeat the request as it was; the others ask with GET
WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
CHUNK_BYTES = 2**18
LENGTH_DIGITS = 19  # a file of more bytes than this has digits does not exist
AS_IT_IS = {"Accept-Encoding": "identity"}  # some servers call a .gz file an encoding of its content

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from pathlib import Path
    from types import TracebackType


@dataclass(frozen=True)
class Patience:
    """How long to wait and how often to try again.

    Attributes
    ----------
    connect_s, read_s
        Longest wait for a connection, and between two pieces of an answer [s].
    attempts
        Tries in all, for requests that may be repeated without harm.
    pause_s
        Pause before the second try [s]; it doubles each time.
    longest_pause_s
        Upper bound of a pause, also of one that the server asks for with ``Retry-After`` [s].
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    attempts: int = 4
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


class HttpClient:
    """Requests with retries; use it as a context manager.

    Redirects are followed, except where a body, which may hold a password, would go to another host with them.

    Parameters
    ----------
    patience
        Time limits and retries.
    ca_file
        Certificates to trust besides those of the system and of Mozilla.
    proxy
        URL of a proxy; None reads ``HTTPS_PROXY`` and its siblings.
    transport
        Replaces the network, for tests.
    sleep
        The clock's way of waiting.
    """

    def __init__(
        self,
        patience: Patience | None = None,
        *,
        ca_file: str | None = None,
        proxy: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.patience = patience or Patience()
        self._sleep = sleep
        self._client = httpx.Client(
            timeout=httpx.Timeout(self.patience.read_s, connect=self.patience.connect_s),
            headers={"User-Agent": f"tapetum/{__version__}"},
            follow_redirects=True,
            event_hooks={"response": [_keep_body_at_home]},
            verify=_trust(ca_file),
            proxy=proxy,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def request(self, method: str, url: str, *, harmless: bool = False, **options: Any) -> httpx.Response:
        """Send one request and read the whole answer; `harmless` says that even a POST may be sent again.

        Raises
        ------
        NetworkError
            No connection, or an answer of 400 and above after the retries that the method allows.
        """
        return self._persist(method, url, lambda: self._answer(method, url, options), harmless=harmless)

    def exchange(
        self,
        method: str,
        url: str,
        *,
        max_bytes: int,
        reads: Container[int] = (),
        harmless: bool = False,
        **options: Any,
    ) -> tuple[int, bytes]:
        """Send one request and read its answer, however the server says what is wrong with it.

        Parameters
        ----------
        method, url
            What is asked.
        max_bytes
            No longer answer is read [bytes, after decompression].
        reads
            Statuses of 400 and above that are answers as well: a service explains itself in them.
        harmless
            Even a POST may be sent again.
        **options
            As `httpx.Client.stream` takes them.

        Returns
        -------
        status : int
            Below 400, or one of `reads`.
        body : bytes

        Raises
        ------
        NetworkError
            As for `request`.
        LimitError
            The answer is longer than `max_bytes`.
        """

        def ask() -> tuple[int, bytes]:
            body = bytearray()
            with self._client.stream(method, url, **options) as answer:
                if answer.status_code not in reads:
                    answer.raise_for_status()
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    body += chunk
                    if len(body) > max_bytes:
                        raise LimitError(f"{answer.url}: more than the {max_bytes} bytes that are accepted")
            return answer.status_code, bytes(body)

        return self._persist(method, url, ask, harmless=harmless)

    def download(
        self,
        url: str,
        path: Path,
        *,
        max_bytes: int,
        sha256: str | None = None,
        check: Callable[[Path], None] | None = None,
        params: Mapping[str, str] | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """Download into `path`, which appears whole and only with the right content.

        Parameters
        ----------
        url
            What to fetch.
        path
            Where it is kept.
        max_bytes
            Nothing larger is taken.
        sha256
            What the content must hash to; None where nobody pinned it.
        check
            Called with the finished file before it gets its name; what it raises keeps the file from appearing.
        params
            Query of the URL; the messages do without it.
        progress
            Told of every piece.

        Raises
        ------
        NetworkError
            The URL cannot be reached, or breaks off again and again.
        LimitError
            More than `max_bytes`.
        FormatError
            The content's SHA-256 is not `sha256`, or what `check` raised.
        """

        def fetch() -> None:
            with (
                whole_file(path) as part,
                self._client.stream("GET", url, headers=AS_IT_IS, params=params) as answer,
            ):
                answer.raise_for_status()
                found = _store(answer, part, max_bytes, progress)
                if sha256 is not None and found != sha256:
                    raise FormatError(
                        f"{url}: SHA-256 is {found}, not the pinned {sha256}; the file was not kept"
                    )
                if check is not None:
                    check(part)

        self._persist("GET", url, fetch)

    def _answer(self, method: str, url: str, options: dict[str, Any]) -> httpx.Response:
        answer = self._client.request(method, url, **options)
        answer.raise_for_status()
        return answer

    def _persist(self, method: str, url: str, act: Callable[[], T], *, harmless: bool = False) -> T:
        attempts = self.patience.attempts if harmless or method.upper() in IDEMPOTENT else 1
        for attempt in range(1, attempts + 1):
            try:
                return act()
            except httpx.HTTPStatusError as problem:
                status = problem.response.status_code
                if status not in WORTH_RETRYING or attempt == attempts:
                    reason = f"the server answered {status} {problem.response.reason_phrase}".rstrip()
                    raise NetworkError(_complaint(method, url, reason, attempt)) from None
                pause = _retry_after(problem.response)
            except httpx.TransportError as problem:
                if attempt == attempts:
                    reason = str(problem) or type(problem).__name__
                    raise NetworkError(_complaint(method, url, reason, attempt)) from None
                pause = None
            except (httpx.InvalidURL, httpx.TooManyRedirects, httpx.DecodingError) as problem:
                raise NetworkError(_complaint(method, url, str(problem), attempt)) from None
            if pause is None:
                pause = self.patience.pause_s * 2 ** (attempt - 1)
            self._sleep(min(pause, self.patience.longest_pause_s))
        raise NetworkError(f"{method} {url}: no attempt was allowed; set attempts to 1 or more")


def _store(answer: httpx.Response, part: Path, max_bytes: int, progress: Progress) -> str:
    """Write the body to `part` and return its SHA-256."""
    announced = _announced_bytes(answer)
    if announced is not None and announced > max_bytes:
        raise LimitError(f"{answer.url}: {announced} bytes announced, at most {max_bytes} are accepted")
    digest, n_bytes = hashlib.sha256(), 0
    with part.open("wb") as handle:
        for chunk in answer.iter_raw(CHUNK_BYTES):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                raise LimitError(f"{answer.url}: more than the {max_bytes} bytes that are accepted")
            digest.update(chunk)
            handle.write(chunk)
            progress(n_bytes, announced)
    return digest.hexdigest()


def _announced_bytes(answer: httpx.Response) -> int | None:
    """Length that the server announces; None when it does not, or announces nonsense: what comes is counted anyway."""
    text = answer.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and len(text) <= LENGTH_DIGITS else None


def _keep_body_at_home(answer: httpx.Response) -> None:
    """Refuse a redirect that sends what was in the body to another origin; headers httpx takes off by itself."""
    if not answer.has_redirect_location or answer.status_code not in KEEPS_BODY:
        return
    try:
        target = answer.url.join(answer.headers["Location"])
    except httpx.InvalidURL:
        return  # following it will say so
    if answer.request.method not in WITHOUT_BODY and _origin(target) != _origin(answer.url):
        here, there = (
            f"{url.scheme}://{url.netloc.decode().rpartition('@')[2]}" for url in (answer.url, target)
        )
        raise NetworkError(
            f"{answer.request.method} {here}{answer.url.path}: the server points to {there}, which would be given what "
            "was sent; if that is the right address, give it instead"
        )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port  # httpx leaves out the port that a scheme has anyway


def _trust(ca_file: str | None) -> ssl.SSLContext:
    # the system's certificates know an institute's own authority; certifi's serve where the system has none
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _retry_after(answer: httpx.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None  # the form with a date is rare; our own pause does then


def _complaint(method: str, url: str, reason: str, attempts: int) -> str:
    tried = f" (tried {attempts} times)" if attempts > 1 else ""
    return f"{method} {url}: {reason}{tried}"
