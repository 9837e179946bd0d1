"""A client for Kowalski servers: light curves, alerts and catalogues by query and by position.

It speaks the HTTP interface of Kowalski 3 (`POST /api/queries`), which our own server answers as well.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tapetum.core.errors import FormatError, InputError, LimitError, NetworkError, UsageError
from tapetum.core.http import HttpClient, Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MAX_BYTES = 2**28  # of one answer; a thousand light curves of a thousand points are a third of it
QUERY_SECONDS = 300.0  # the server's own limit of one query
GRACE_SECONDS = 30.0  # for the server to say that a query took too long
EXPLAINED = frozenset({400, 401, 403, 404, 409, 413})  # statuses whose message says what is wrong
UNKNOWN_USER = frozenset({401, 403})
STALE = ("token is invalid", "token has expired")

Document = dict[str, Any]


@dataclass(frozen=True)
class Login:
    """Who asks.

    Attributes
    ----------
    user, password
        A token is made from them, and another one when it has expired.
    token
        Sent as it is; no password is needed then.
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"  # neither password nor token: this may end in a log


def _address(url: str) -> tuple[str, Login | None]:
    """An address as it may be shown, and who asks where that is before the host (``user:password@``)."""
    try:
        parts = urlsplit(url.rstrip("/"))
        user, password = (
            None if word is None else unquote(word) for word in (parts.username, parts.password)
        )
    except ValueError as problem:
        raise UsageError(f"{url.rpartition('@')[2]}: not the address of a server: {problem}") from None
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return shown, None if user is None else Login(user, password)


class Kowalski:
    """One Kowalski server; it may be used from several threads.

    Parameters
    ----------
    url
        Protocol, host and port, as in `tapetum.toml`; user and password before the host count where `login` names none.
    client
        Asks; its `Patience` should wait for answers at least as long as `seconds`.
    login
        Who asks.
    seconds
        Longest time that the server may work on one query [s].
    max_bytes
        No longer answer is taken [bytes].
    """

    def __init__(
        self,
        url: str,
        client: HttpClient,
        login: Login,
        *,
        seconds: float = QUERY_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                f"{url.rpartition('@')[2]}: not the address of a server; it begins with https:// or http://"
            )
        self.url, given = _address(url)
        login = login if login.password or login.token or given is None else given
        self._client = client
        self._login = login
        self._milliseconds = max(int(seconds * 1000), 1)
        self._max_bytes = max_bytes
        self._token = login.token
        self._catalogues: list[str] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Kowalski({self.url!r})"

    def ping(self) -> bool:
        """Whether the server answers and knows us."""
        try:
            self._ask("GET", "/", None)
        except (NetworkError, InputError):
            return False
        return True

    def login(self) -> None:
        """Get a token for user and password; the first question does it by itself.

        Raises
        ------
        UsageError
            Neither a token nor user and password are there.
        InputError
            The server does not know the user, or the password is another.
        NetworkError
            It cannot be reached, or answers nonsense.
        """
        self._token_after(None)

    def catalogues(self) -> list[str]:
        """Names of all catalogues, in alphabetical order; asked once."""
        if self._catalogues is None:
            names = self.query("info", {"command": "catalog_names"})
            self._catalogues = sorted(str(name) for name in self._list(names))
        return self._catalogues

    def query(self, kind: str, query: Mapping[str, Any], **kwargs: Any) -> Any:
        """Ask any query.

        Parameters
        ----------
        kind
            ``find``, ``find_one``, ``count_documents``, ``aggregate``, ``cone_search``, ``near``, ``info``, ...
        query
            As the interface wants it for this kind.
        **kwargs
            ``limit``, ``skip``, ``sort``, ``max_time_ms``, ...; those that are None are left out.

        Returns
        -------
        object
            `data` of the answer: dates as `datetime`, object ids as str, bytes as bytes.

        Raises
        ------
        InputError
            The server refuses the query, or us; the message is its own.
        LimitError
            The question or the answer is too long; ask for less at a time.
        NetworkError
            It cannot be reached, or answers nonsense.
        """
        options = {"max_time_ms": self._milliseconds} | {
            key: value for key, value in kwargs.items() if value is not None
        }
        answer = self._ask(
            "POST", "/api/queries", {"query_type": kind, "query": dict(query), "kwargs": options}
        )
        return answer.get("data")

    def find(
        self,
        catalogue: str,
        filter: Mapping[str, Any],  # noqa: A002 - the interface's word
        projection: Mapping[str, Any] | None = None,
        *,
        limit: int | None = None,
        skip: int | None = None,
        sort: Sequence[tuple[str, int]] | None = None,
    ) -> list[Document]:
        """Documents of one catalogue that a MongoDB filter takes.

        Raises
        ------
        InputError, LimitError, NetworkError
            As for `query`.
        """
        query = {"catalog": catalogue, "filter": dict(filter), "projection": dict(projection or {})}
        order = [list(pair) for pair in sort] if sort else None
        return self._list(self.query("find", query, limit=limit, skip=skip, sort=order))

    def count_documents(self, catalogue: str, filter: Mapping[str, Any]) -> int:  # noqa: A002
        """How many documents of one catalogue a filter takes.

        Raises
        ------
        InputError, LimitError, NetworkError
            As for `query`.
        """
        count = self.query("count_documents", {"catalog": catalogue, "filter": dict(filter)})
        if isinstance(count, bool) or not isinstance(count, int):
            raise NetworkError(f"{self.url}: no number of documents but {count!r}")
        return count

    def cone_search(
        self,
        catalogue: str,
        positions: Sequence[tuple[float, float]],
        radius_arcsec: float,
        *,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        projection: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> list[list[Document]]:
        """Documents of one catalogue around positions, in any order.

        Parameters
        ----------
        catalogue
            Its name.
        positions
            Right ascension and declination [deg].
        radius_arcsec
            Of each cone [arcsec].
        filter, projection
            Which documents, and what of them.
        limit
            Documents per position.

        Returns
        -------
        list of list of dict
            For each position.

        Raises
        ------
        InputError, LimitError, NetworkError
            As for `query`.
        """
        where = {
            "cone_search_radius": radius_arcsec,
            "cone_search_unit": "arcsec",
            "radec": _numbered(positions),
        }
        query = {"object_coordinates": where, "catalogs": _selection(catalogue, filter, projection)}
        return self._by_position("cone_search", query, catalogue, len(positions), limit)

    def near(
        self,
        catalogue: str,
        positions: Sequence[tuple[float, float]],
        max_distance_arcsec: float,
        *,
        min_distance_arcsec: float = 0.0,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        projection: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> list[list[Document]]:
        """Documents of one catalogue around positions, the nearest first; see `cone_search`.

        Raises
        ------
        InputError, LimitError, NetworkError
            As for `query`.
        """
        query = {
            "min_distance": min_distance_arcsec,
            "max_distance": max_distance_arcsec,
            "distance_units": "arcsec",
            "radec": _numbered(positions),
            "catalogs": _selection(catalogue, filter, projection),
        }
        return self._by_position("near", query, catalogue, len(positions), limit)

    def _by_position(
        self, kind: str, query: Mapping[str, Any], catalogue: str, n_positions: int, limit: int | None
    ) -> list[list[Document]]:
        data = self.query(kind, query, limit=limit) if n_positions else {catalogue: {}}
        found = data.get(catalogue) if isinstance(data, dict) else None
        if not isinstance(found, dict):
            raise NetworkError(f"{self.url}: the answer to {kind} has nothing of the catalogue {catalogue}")
        return [self._list(found.get(str(number), [])) for number in range(n_positions)]

    def _list(self, data: Any) -> list[Any]:
        if not isinstance(data, list):
            raise NetworkError(f"{self.url}: no list of documents but {str(data)[:80]!r}")
        return data

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Document:
        token = self._token or self._token_after(None)
        status, answer = self._exchange(method, path, body, token)
        message = str(answer.get("message", ""))
        if status == 401 or any(word in message for word in STALE):
            # it has expired, or the server has forgotten it: once more with a new one
            token = self._token_after(token)
            status, answer = self._exchange(method, path, body, token)
        return self._good(path, status, answer)

    def _good(self, path: str, status: int, answer: Document) -> Document:
        message = str(answer.get("message") or "no reason given")
        if status in UNKNOWN_USER:
            raise InputError(
                f"{self.url}{path}: {message}; the server does not let us in, check user and password or token"
            )
        if status == 413:
            raise LimitError(f"{self.url}{path}: the question is too long; ask for fewer at a time")
        if status >= 400 or answer.get("status") == "error":  # some failures come with status 200
            raise InputError(f"{self.url}{path}: the server refuses: {message}")
        return answer

    def _token_after(self, old: str | None) -> str:
        """A token that is not `old`; threads that ask at the same time share one login."""
        with self._lock:
            if self._token is not None and self._token != old:
                return self._token
            if not (self._login.user and self._login.password):
                reason = "the token is not accepted any more" if old else "no token"
                raise UsageError(f"{self.url}: {reason}, and no user with a password is named")
            body = {"username": self._login.user, "password": self._login.password}
            status, answer = self._exchange("POST", "/api/auth", body, None)
            token = self._good("/api/auth", status, answer).get("token")
            if not isinstance(token, str) or not token:
                raise NetworkError(f"{self.url}/api/auth: the answer has no token")
            self._token = token
            return token

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, token: str | None
    ) -> tuple[int, Document]:
        url = self.url + path
        headers = {"Authorization": token} if token else {}  # bare: every version of the server takes that
        try:
            status, content = self._client.exchange(
                method,
                url,
                max_bytes=self._max_bytes,
                reads=EXPLAINED,
                harmless=True,  # queries change nothing, and another token does no harm
                headers=headers,
                json=body,
            )
        except LimitError as problem:
            raise LimitError(f"{problem}; ask for fewer at a time") from None
        except ValueError as problem:  # a number or object that JSON does not have
            raise InputError(f"{url}: the question cannot be sent: {problem}") from None
        if status == 413:
            return status, {}  # of a server in front, which speaks HTML
        try:
            answer = parse_extended_json(content)
        except FormatError as problem:
            raise NetworkError(f"{url}: {problem}; is this a Kowalski server?") from None
        if not isinstance(answer, dict) or not {"status", "message", "data", "token"} & set(answer):
            raise NetworkError(f"{url}: not an answer of a Kowalski server but {content[:80]!r}")
        return status, answer


@contextmanager
def open_kowalski(url: str, login: Login, *, seconds: float = QUERY_SECONDS) -> Iterator[Kowalski]:
    """A server with an HTTP client of its own, which waits as long as a query may take.

    Parameters
    ----------
    url, login, seconds
        As for `Kowalski`.

    Raises
    ------
    UsageError
        `url` is not one.
    """
    with HttpClient(Patience(read_s=seconds + GRACE_SECONDS)) as client:
        yield Kowalski(url, client, login, seconds=seconds)


def server_with(servers: Sequence[Kowalski], catalogue: str) -> Kowalski:
    """The first of several servers that has a catalogue.

    Raises
    ------
    InputError
        None has it; the message names what resembles it.
    """
    known: list[str] = []
    for server in servers:
        names = server.catalogues()
        if catalogue in names:
            return server
        known += names
    stem = catalogue.rpartition("_")[0] or catalogue
    near = [name for name in known if name.startswith(stem)] or known
    raise InputError(
        f"no catalogue {catalogue} at {', '.join(s.url for s in servers)}; there is: {' '.join(near)}"
    )


def parse_extended_json(content: bytes) -> Any:
    """Read MongoDB's extended JSON, and bare ``NaN`` and ``Infinity`` with it.

    Parameters
    ----------
    content
        UTF-8 text.

    Returns
    -------
    object
        Dates as aware `datetime`, object ids as str, bytes as bytes, all numbers as int or float.

    Raises
    ------
    FormatError
        Not JSON, or a value that is not what it says.

    Examples
    --------
    >>> parse_extended_json(b'{"_id": {"$oid": "5f"}, "drb": {"$numberDouble": "NaN"}, "n": {"$numberLong": "7"}}')
    {'_id': '5f', 'drb': nan, 'n': 7}
    """
    try:
        return json.loads(content, object_hook=_plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as problem:
        raise FormatError(f"not JSON but {content[:80]!r} ({type(problem).__name__}: {problem})") from None


def _plain(entry: Document) -> Any:
    if len(entry) != 1:
        return entry
    ((key, value),) = entry.items()
    reader = _READERS.get(key)
    return entry if reader is None else reader(value)


def _date(value: Any) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return datetime.fromtimestamp(int(value) / 1000, UTC)  # far years come as milliseconds


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value["base64"] if isinstance(value, dict) else value, validate=True)
    except binascii.Error as problem:
        raise ValueError(str(problem)) from None


_READERS: dict[str, Callable[[Any], Any]] = {
    "$oid": str,
    "$date": _date,
    "$binary": _bytes,
    "$numberDouble": float,
    "$numberDecimal": float,
    "$numberLong": int,
    "$numberInt": int,
}


def _numbered(positions: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    # by number: names of ours would come back with their dots replaced
    return {str(number): [float(ra), float(dec)] for number, (ra, dec) in enumerate(positions)}


def _selection(
    catalogue: str, filter_: Mapping[str, Any] | None, projection: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {catalogue: {"filter": dict(filter_ or {}), "projection": dict(projection or {})}}
