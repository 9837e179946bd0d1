"""The client for Kowalski servers, against one on this machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tapetum.core.errors import FormatError, InputError, LimitError, NetworkError, TapetumError, UsageError
from tapetum.core.http import HttpClient, Patience
from tapetum.core.threads import in_threads
from tapetum.surveys.kowalski import Kowalski, Login, open_kowalski, parse_extended_json, server_with

HASTY = Patience(connect_s=5, read_s=5, attempts=3, pause_s=0.01)


def point(ra: float, dec: float) -> dict[str, Any]:
    return {"radec_geojson": {"type": "Point", "coordinates": [ra - 180.0, dec]}}


@pytest.fixture
def client() -> Iterator[HttpClient]:
    with HttpClient(HASTY) as opened:
        yield opened


@pytest.fixture
def server(kowalski: Any, client: HttpClient) -> Kowalski:
    kowalski.catalogues["ZTF_alerts"] = [
        {
            "_id": n,
            "candid": 1105522281015015000 + n,
            "drb": math.nan,
            "coordinates": point(10.0 + n / 3600, 20.0),
        }
        for n in range(5)
    ]
    return Kowalski(kowalski.url, client, Login(kowalski.user, kowalski.password))


def test_a_question_logs_in_by_itself_and_keeps_the_token(server: Kowalski, kowalski: Any) -> None:
    assert server.ping()
    assert server.find("ZTF_alerts", {"_id": 3}, {"candid": 1}) == [{"_id": 3, "candid": 1105522281015015003}]
    assert kowalski.logins == 1
    assert kowalski.headers == ["jwt-1", "jwt-1"]
    assert kowalski.asked[0] == {
        "query_type": "find",
        "query": {"catalog": "ZTF_alerts", "filter": {"_id": 3}, "projection": {"candid": 1}},
        "kwargs": {"max_time_ms": 300_000},
    }


def test_a_token_needs_no_password(kowalski: Any, client: HttpClient) -> None:
    kowalski.valid.add("from-somebody")
    server = Kowalski(kowalski.url + "/", client, Login(token="from-somebody"))
    assert server.catalogues() == []
    assert kowalski.logins == 0


def test_a_server_is_opened_with_one_call(kowalski: Any) -> None:
    with open_kowalski(kowalski.url, Login(kowalski.user, kowalski.password), seconds=7.5) as server:
        assert server.find("ZTF_alerts", {}) == []
    assert kowalski.asked[0]["kwargs"] == {"max_time_ms": 7500}


def test_an_expired_token_is_replaced_once(server: Kowalski, kowalski: Any) -> None:
    server.login()
    kowalski.valid.clear()
    assert server.count_documents("ZTF_alerts", {}) == 5
    assert kowalski.logins == 2


def test_threads_share_one_login(server: Kowalski, kowalski: Any) -> None:
    kowalski.seconds = 0.05
    counts = [
        o.result for o in in_threads(lambda n: server.count_documents("ZTF_alerts", {"_id": n}), range(8), 4)
    ]
    assert counts == [1] * 5 + [0] * 3
    assert kowalski.logins == 1
    assert 1 < kowalski.most_at_once <= 4


def test_an_expired_token_without_a_password_says_so(kowalski: Any, client: HttpClient) -> None:
    with pytest.raises(UsageError, match="token is not accepted any more"):
        Kowalski(kowalski.url, client, Login(token="jwt-old")).catalogues()


def test_a_wrong_password_is_named(kowalski: Any, client: HttpClient) -> None:
    server = Kowalski(kowalski.url, client, Login(kowalski.user, "guess"))
    with pytest.raises(InputError, match=r"/api/auth: Unauthorized; .* check user and password") as caught:
        server.login()
    assert "guess" not in str(caught.value)
    assert not server.ping()


def test_nobody_and_nowhere(kowalski: Any, client: HttpClient) -> None:
    with pytest.raises(UsageError, match="no user with a password"):
        Kowalski(kowalski.url, client, Login()).catalogues()
    with pytest.raises(UsageError, match="begins with https"):
        Kowalski("kowalski.example.org", client, Login())
    with HttpClient(Patience(connect_s=1, attempts=1)) as other:
        away = Kowalski("http://127.0.0.1:9", other, Login("u", "p"))
        assert not away.ping()
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1:9"):
            away.catalogues()


def test_secrets_are_not_shown() -> None:
    shown = repr(Login("vera", "secret", "token"))
    assert "vera" in shown
    assert "secret" not in shown
    assert "token" not in shown


def test_positions_come_back_in_their_order(server: Kowalski, kowalski: Any) -> None:
    places = [(10.0, 20.0), (50.0, -10.0), (10.0 + 4 / 3600, 20.0)]
    found = server.cone_search("ZTF_alerts", places, 1.5, projection={"_id": 1})
    assert [sorted(d["_id"] for d in documents) for documents in found] == [[0, 1], [], [3, 4]]
    nearest = server.near("ZTF_alerts", places, 1.5, projection={"_id": 1})
    assert [[d["_id"] for d in documents] for documents in nearest] == [[0, 1], [], [4, 3]]
    ring = server.near("ZTF_alerts", places[:1], 3.0, min_distance_arcsec=0.5, limit=1)
    assert ring[0][0]["_id"] == 1
    assert server.cone_search("ZTF_alerts", [], 1.0) == []
    assert [body["query_type"] for body in kowalski.asked] == ["cone_search", "near", "near"]


def test_filters_sort_skip_and_limit_reach_the_server(server: Kowalski) -> None:
    found = server.find("ZTF_alerts", {"_id": {"$gte": 1}}, {"_id": 1}, sort=[("_id", -1)], skip=1, limit=2)
    assert found == [{"_id": 3}, {"_id": 2}]
    within = server.cone_search(
        "ZTF_alerts", [(10.0, 20.0)], 10, filter={"_id": {"$in": [2, 4]}}, projection={"_id": 1}
    )
    assert sorted(d["_id"] for d in within[0]) == [2, 4]
    assert math.isnan(server.find("ZTF_alerts", {"_id": 0})[0]["drb"])


def test_what_the_server_refuses_has_its_own_words(server: Kowalski) -> None:
    with pytest.raises(InputError, match=r"Protected collection users"):
        server.find("users", {})
    with pytest.raises(InputError, match="query_type guess not in"):
        server.query("guess", {})


def test_one_failure_is_tried_again(server: Kowalski, kowalski: Any) -> None:
    kowalski.faults = [(500, b"oops"), (503, b"<html>busy</html>")]
    assert server.count_documents("ZTF_alerts", {}) == 5
    assert len(kowalski.asked) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ((500, b"oops"), NetworkError, "answered 500"),
        ((200, b"<html>a proxy</html>"), NetworkError, "is this a Kowalski server"),
        ((404, b"<html>no such page</html>"), NetworkError, "is this a Kowalski server"),
        ((200, b"[1, 2]"), NetworkError, "not an answer of a Kowalski server"),
        ((200, b'{"status": "success", "message": ""}'), NetworkError, "no list of documents"),
        ((200, b'{"status": "success", "data": {"a": 1}}'), NetworkError, "no list of documents"),
        ((200, b'{"status": "error", "message": "skymap not found"}'), InputError, "skymap not found"),
        (
            (400, b'{"status": "error", "message": "ExecutionTimeout: too slow"}'),
            InputError,
            "ExecutionTimeout",
        ),
        ((403, b'{"status": "error", "message": "Forbidden"}'), InputError, "does not let us in"),
        ((413, b"<html>Request Entity Too Large</html>"), LimitError, "ask for fewer at a time"),
        ((200, b'{"data": [{"_id": {"$oid": 5}, "t": {"$date": "yesterday"}}]}'), NetworkError, "not JSON"),
        ((200, b"[" * 100_000), NetworkError, "not JSON"),
    ],
)
def test_every_failure_is_explained(
    server: Kowalski, kowalski: Any, fault: tuple[int, bytes], kind: type[TapetumError], words: str
) -> None:
    kowalski.fault_of = lambda body: fault
    with pytest.raises(kind, match=words) as caught:
        server.find("ZTF_alerts", {})
    assert kowalski.url in str(caught.value)


def test_odd_answers_to_cones_and_counts(server: Kowalski, kowalski: Any) -> None:
    kowalski.fault_of = lambda body: (200, b'{"status": "success", "data": true}')
    with pytest.raises(NetworkError, match="no number of documents but True"):
        server.count_documents("ZTF_alerts", {})
    with pytest.raises(NetworkError, match="nothing of the catalogue ZTF_alerts"):
        server.cone_search("ZTF_alerts", [(1.0, 2.0)], 2)


def test_a_server_that_is_too_slow(kowalski: Any, server: Kowalski) -> None:
    kowalski.seconds = 1.0
    hasty = Patience(read_s=0.1, attempts=2, pause_s=0.01)
    with HttpClient(hasty) as client, pytest.raises(NetworkError, match=r"tried 2 times"):
        Kowalski(kowalski.url, client, Login(kowalski.user, kowalski.password)).catalogues()
    kowalski.seconds = 0.0
    assert server.catalogues() == ["ZTF_alerts"]


def test_answers_without_end_are_not_read(kowalski: Any, client: HttpClient) -> None:
    kowalski.catalogues["big"] = [{"_id": n, "text": "x" * 100} for n in range(1000)]
    server = Kowalski(kowalski.url, client, Login(kowalski.user, kowalski.password), max_bytes=10_000)
    with pytest.raises(LimitError, match=r"10000 bytes .* ask for fewer"):
        server.find("big", {})
    assert len(server.find("big", {}, limit=5)) == 5


def test_a_question_that_json_does_not_have(server: Kowalski) -> None:
    with pytest.raises(InputError, match="cannot be sent"):
        server.find("ZTF_alerts", {"drb": math.nan})


def test_the_server_that_has_a_catalogue(kowalski: Any, client: HttpClient, server: Kowalski) -> None:
    kowalski.valid.add("t")
    other = Kowalski(kowalski.url.replace("127.0.0.1", "localhost"), client, Login(token="t"))
    other._catalogues = ["ZTF_sources_20210401", "ZTF_sources_20230109"]
    assert server_with([server, other], "ZTF_sources_20230109") is other
    with pytest.raises(
        InputError, match=r"no catalogue ZTF_sources_1 .* there is: ZTF_sources_20210401 ZTF_sources_2023"
    ):
        server_with([server, other], "ZTF_sources_1")


def test_extended_json_becomes_plain() -> None:
    text = {
        "long": {"$numberLong": "1105522281015015000"},
        "inf": {"$numberDouble": "-Infinity"},
        "oid": {"$oid": "5f0c"},
        "date": {"$date": "2023-06-23T15:42:26.123Z"},
        "early": {"$date": {"$numberLong": "0"}},
        "bytes": {"$binary": {"base64": "aGk=", "subType": "00"}},
        "query": {"$in": [1]},
        "plain": 1105522281015015000,
    }
    read = parse_extended_json(json.dumps(text).encode())
    assert read == {
        "long": 1105522281015015000,
        "inf": -math.inf,
        "oid": "5f0c",
        "date": datetime(2023, 6, 23, 15, 42, 26, 123000, UTC),
        "early": datetime(1970, 1, 1, tzinfo=UTC),
        "bytes": b"hi",
        "query": {"$in": [1]},
        "plain": 1105522281015015000,
    }
    assert math.isnan(parse_extended_json(b"NaN"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b'{"$date": 1e400}',
        b'{"$binary": "?"}',
        b'{"$binary": {}}',
        b'{"$numberLong": "x"}',
    ],
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(FormatError, match="not JSON"):
        parse_extended_json(text)


def test_threads_keep_order_and_name_what_failed() -> None:
    def work(number: int) -> int:
        if number % 3 == 2:
            raise InputError(f"{number} is bad")
        return number * number

    outcomes = list(in_threads(work, range(7), 3))
    assert [outcome.item for outcome in outcomes] == list(range(7))
    assert [str(outcome.problem) for outcome in outcomes if outcome.problem] == ["2 is bad", "5 is bad"]
    assert [outcome.result for outcome in outcomes if not outcome.problem] == [0, 1, 9, 16, 36]
    with pytest.raises(InputError, match="2 is bad"):
        _ = outcomes[2].result


def test_threads_do_not_hide_faults_and_do_not_run_ahead() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    broken: Callable[[int], float] = lambda number: 1 / (3 - number)  # noqa: E731
    with pytest.raises(ZeroDivisionError):
        list(in_threads(broken, items(), 2))
    assert len(begun) < 20


@pytest.mark.parametrize(
    ("status", "location"), [(307, "http://other.example.net/api/auth"), (308, "//other:99/x")]
)
def test_a_password_does_not_follow_a_redirect_to_another_host(status: int, location: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(status, headers={"Location": location})

    with HttpClient(HASTY, transport=httpx.MockTransport(answer)) as client:
        server = Kowalski("https://kowalski.example.org", client, Login("vera", "hunter2"))
        with pytest.raises(NetworkError, match=r"points to http.*would be given what was sent"):
            server.find("ZTF_alerts", {})
    assert asked == ["kowalski.example.org"]


def test_a_redirect_within_the_server_is_followed() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if not request.url.path.startswith("/v2"):
            return httpx.Response(307, headers={"Location": f"/v2{request.url.path}"})
        login = request.url.path.endswith("auth")
        return httpx.Response(200, json={"token": "T"} if login else {"status": "success", "data": []})

    with HttpClient(HASTY, transport=httpx.MockTransport(answer)) as client:
        server = Kowalski("https://kowalski.example.org", client, Login("vera", "hunter2"))
        assert server.find("ZTF_alerts", {}) == []


def test_user_and_password_of_an_address_are_used_and_not_shown(kowalski: Any, client: HttpClient) -> None:
    url = kowalski.url.replace("://", f"://{kowalski.user}:{kowalski.password}@")
    server = Kowalski(url, client, Login())
    assert server.ping()
    assert kowalski.headers == ["jwt-1"]
    assert (server.url, repr(server)) == (kowalski.url, f"Kowalski({kowalski.url!r})")
    wrong = Kowalski(url.replace(kowalski.password, "sekret"), client, Login())
    with pytest.raises(InputError) as problem:
        wrong.find("ZTF_alerts", {})
    assert "sekret" not in str(problem.value)
    with pytest.raises(UsageError) as bad:
        Kowalski("u:sekret@kowalski.example.org", client, Login())
    assert "sekret" not in str(bad.value)
