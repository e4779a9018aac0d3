"""Probes that call the service itself: what must be refused is, what must be sent is."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.controlled_service import context, token

from healthobs import Settings
from healthobs.compliance import (
    Reply,
    Route,
    self_caller,
)
from healthobs.compliance.probes_http import refuses_bad_tokens, refuses_strangers, sends_headers
from healthobs.compliance.selfcall import CANARY, OWN
from healthobs.headers import SECURITY, compliance

FULL = {
    name.lower(): value
    for name, value in (*SECURITY, *compliance(conf="R", frameworks=["hipaa"], retention_days=1))
}


def replying(status: int, headers: Mapping[str, str] | None = None) -> Any:
    return lambda method, path, sent, body: Reply(status, headers or {}, b"")


def serving(
    headers: Mapping[str, str],
    statuses: Mapping[str, int] | None = None,
    elsewhere: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """Return what answers as a service does, but for the statuses and headers that are given by path."""

    def call(method: str, path: str, sent: Mapping[str, str], body: bytes) -> Reply:
        usual = {"/health": 200 if method == "GET" else 405, "/metrics": 200, "/p": 401}
        return Reply({**usual, **(statuses or {})}.get(path, 404), (elsewhere or {}).get(path, headers), b"")

    return call


class TestHttpProbes:
    """Access, tokens and headers."""

    @pytest.mark.parametrize(
        ("status", "state"),
        [(401, "pass"), (403, "pass"), (200, "fail"), (404, "fail"), (422, "fail"), (500, "fail")],
    )
    def test_refusals(self, status: int, state: str) -> None:
        """Only 401 and 403 refuse: an error or a missing route is no access control. With 403 no signature was judged."""
        asked = context(
            call=replying(status),
            protected=[Route("GET", "/p")],
            refused_tokens=lambda: {"bad_signature": token()},
        )
        judged = "partial" if status == 403 else state
        assert (refuses_strangers(asked).state, refuses_bad_tokens(asked).state) == (state, judged)

    @pytest.mark.parametrize("probe", [refuses_strangers, refuses_bad_tokens])
    def test_nothing_to_ask(self, probe: Any) -> None:
        """Without an application, or without a protected route, nothing was seen."""
        unbound, unnamed = probe(context()), probe(context(call=replying(401)))
        assert [unbound.state, unnamed.state] == ["unknown", "unknown"]
        assert (unnamed.text, unnamed.unset) == (
            "no route was named: give init_app the argument protected",
            True,
        )

    def test_nothing_good_but_for_its_signature(self) -> None:
        """Without such a token refusals do not say that signatures are checked, and that is listed as missing."""
        outcome = refuses_bad_tokens(context(call=replying(401), protected=[Route("GET", "/p")]))
        assert (outcome.state, outcome.missing) == (
            "partial",
            ("a token of which only the signature is wrong",),
        )

    @pytest.mark.parametrize("alg", ["RS256", "none"])
    def test_claims_of_a_good_token(self, alg: str) -> None:
        """A route that looks at claims alone is found, wherever it stands and whatever algorithm it insists on."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            header, claims, *_ = (*headers["Authorization"].removeprefix("Bearer ").split("."), "", "")
            good = (
                claims == token().split(".")[1] and json.loads(urlsafe_b64decode(header + "=="))["alg"] == alg
            )
            return Reply(200 if good and path == "/open" else 401, {}, b"")

        outcome = refuses_bad_tokens(
            context(
                call=call,
                protected=[Route("GET", "/shut"), Route("GET", "/open")],
                refused_tokens=lambda: {"bad_signature": token()},
            )
        )
        assert (outcome.state, outcome.n) == ("fail", 1)
        assert outcome.text.startswith("not refused: GET /open with bad_signature")

    @pytest.mark.parametrize(
        ("scope", "state", "missing"),
        [
            (
                "patient:read",
                "partial",
                ("the signature on POST /export: its scope or role refused first (403)",),
            ),
            ("patient:read admin:write", "fail", ()),
        ],
    )
    def test_scope_refuses_first(self, scope: str, state: str, missing: tuple[str, ...]) -> None:
        """A route that checks no signature and answers 403 for a scope that the forged token lacks is not shown to check one."""
        good = token(scope=scope)

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            sent = headers["Authorization"].removeprefix("Bearer ")
            ours = sent.split(".")[:2] == good.split(".")[:2]
            if path == "/p" or not ours:
                return Reply(401, {}, b"")
            return Reply(200 if "admin:write" in scope else 403, {}, b"")

        outcome = refuses_bad_tokens(
            context(
                call=call,
                protected=[Route("GET", "/p"), Route("POST", "/export")],
                refused_tokens=lambda: {"bad_signature": good},
            )
        )
        assert (outcome.state, outcome.missing) == (state, missing)

    def test_one_open_route_among_many(self) -> None:
        """The route that answers is named."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(200 if path == "/open" else 401, {}, b"")

        outcome = refuses_strangers(
            context(call=call, protected=[Route("GET", "/shut"), Route("GET", "/open")])
        )
        assert (outcome.state, outcome.text) == (
            "fail",
            "not refused: GET /open with no credentials answered 200",
        )

    def test_headers_for_trusted_callers_only(self) -> None:
        """Where strangers do not get the compliance headers, only the security set is looked for."""
        security = {name.lower(): value for name, value in SECURITY}
        trusted = context(settings=Settings(audience="trusted"), call=serving(security))
        assert sends_headers(trusted).state == "pass"
        assert sends_headers(context(call=serving(security))).state == "fail"
        for name in security:
            weaker = serving({**security, name: "unsafe"})
            assert sends_headers(context(settings=Settings(), call=weaker)).state == "fail"

    @pytest.mark.parametrize(
        ("name", "value", "state"),
        [
            ("cache-control", "private, no-store", "pass"),
            ("cache-control", "no-stored", "fail"),
            ("content-security-policy", "frame-ancestors 'none'; default-src 'self'", "pass"),
            ("content-security-policy", "x-frame-ancestors 'none'", "fail"),
            ("cross-origin-opener-policy", "same-origin-allow-popups", "fail"),
            ("cross-origin-resource-policy", "same-origin, cross-origin", "fail"),
            ("referrer-policy", "no-referrer-when-downgrade", "fail"),
            ("x-content-type-options", "nosniffing-not", "fail"),
            ("x-frame-options", "deny, allowall", "fail"),
            ("compliance", 'catalogue="1";frameworks=("hipaa")', "pass"),
            ("compliance", "no-frameworks=1", "fail"),
            ("data-classification", "xconf=R", "fail"),
            ("data-handling", "no-storey", "fail"),
        ],
    )
    def test_whole_tokens(self, name: str, value: str, state: str) -> None:
        """A value that holds what is meant within another word says something else."""
        assert sends_headers(context(call=serving({**FULL, name: value}))).state == state

    def test_headers_lost_on_404(self) -> None:
        """One answer without them is enough to fail, and is named."""
        call = serving(FULL, elsewhere={"/healthobs-control-canary": {}})
        outcome = sends_headers(context(settings=Settings(), call=call))
        assert (outcome.state, outcome.n) == ("fail", 7)
        assert "cache-control on 404" in outcome.text

    def test_headers_lost_on_a_success(self) -> None:
        """Where `/health` is none, another endpoint's success is looked at."""
        call = serving(
            {**FULL, "x-frame-options": ""},
            {"/health": 503},
            elsewhere={"/health": FULL, "/healthobs-control-canary": FULL},
        )
        outcome = sends_headers(context(call=call))
        assert (outcome.state, outcome.text) == ("fail", "missing or weak: x-frame-options on 200")

    def test_headers_lost_on_a_refusal(self) -> None:
        """What a protected route answers to strangers is looked at, too."""
        routes = [Route("GET", "/p")]
        sound = sends_headers(context(call=serving(FULL), protected=routes))
        weak = serving(FULL, elsewhere={"/p": {**FULL, "x-frame-options": "sameorigin"}})
        outcome = sends_headers(context(call=weak, protected=routes))
        assert (sound.state, sound.n) == ("pass", 4)
        assert (outcome.state, outcome.text) == ("fail", "missing or weak: x-frame-options on 401 of GET /p")

    @pytest.mark.parametrize(
        ("statuses", "missing"),
        [
            ({"/healthobs-control-canary": 401}, ()),
            ({"/healthobs-control-canary": 200}, ("an unknown path, as it was answered 200",)),
            ({"/health": 503}, ("a wrong method, as it was answered 503",)),
            (
                {"/health": 503, "/metrics": 404},
                ("a success, as it was answered 503 and 404", "a wrong method, as it was answered 503"),
            ),
        ],
    )
    def test_answers_that_are_not_what_they_are_meant_to_be(
        self, statuses: dict[str, int], missing: tuple[str, ...]
    ) -> None:
        """An answer of another status shows nothing of those that it stands for, unless strangers are refused everywhere."""
        outcome = sends_headers(context(call=serving(FULL, statuses)))
        assert (outcome.state, outcome.missing) == ("partial" if missing else "pass", missing)

    def test_no_application(self) -> None:
        """Without an application no header was seen."""
        assert sends_headers(context()).state == "unknown"


class TestSelfCaller:
    """Requests of the service to itself."""

    def test_request_as_received(self) -> None:
        """Method, path, query, headers and body arrive as PEP 3333 says, marked as a probe's."""
        seen: dict[str, Any] = {}

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.update(environ, body=environ["wsgi.input"].read())
            start_response("200 OK", [("Vary", "a"), ("Vary", "b")])(b"writ")
            return [b"ten"]

        reply = self_caller(app)(
            "POST", "/a%20b/%C3%A9?x=1", {"Content-Type": "text/plain", "X-A": "1"}, b"hi"
        )
        names = (
            "REQUEST_METHOD",
            "PATH_INFO",
            "QUERY_STRING",
            "CONTENT_TYPE",
            "CONTENT_LENGTH",
            "HTTP_X_A",
            "body",
        )
        assert [seen[name] for name in names] == ["POST", "/a b/Ã©", "x=1", "text/plain", "2", "1", b"hi"]
        assert seen[CANARY] is OWN
        assert reply == Reply(200, {"vary": "a, b"}, b"written")

    def test_closes_the_body(self) -> None:
        """The body is closed even when it breaks, or the request would never end."""

        class Body:
            closed = False

            def __iter__(self) -> Iterator[bytes]:
                raise OSError

            def close(self) -> None:
                self.closed = True

        body = Body()

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", [])
            return body

        with pytest.raises(OSError):
            self_caller(app)("GET", "/", {}, b"")
        assert body.closed
