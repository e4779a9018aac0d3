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


def replying(status: int, headers: Mapping[str, str] | None = None) -> Any:
    return lambda method, path, sent, body: Reply(status, headers or {}, b"")


class TestHttpProbes:
    """Access, tokens and headers."""

    @pytest.mark.parametrize(
        ("status", "state"),
        [(401, "pass"), (403, "pass"), (200, "fail"), (404, "fail"), (422, "fail"), (500, "fail")],
    )
    def test_refusals(self, status: int, state: str) -> None:
        """Only 401 and 403 refuse: an error or a missing route is no access control."""
        asked = context(
            call=replying(status),
            protected=[Route("GET", "/p")],
            refused_tokens=lambda: {"bad_signature": token()},
        )
        assert (refuses_strangers(asked).state, refuses_bad_tokens(asked).state) == (state, state)

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
        security = {
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        trusted = context(settings=Settings(audience="trusted"), call=replying(200, security))
        assert sends_headers(trusted).state == "pass"
        assert sends_headers(context(call=replying(200, security))).state == "fail"
        for name in security:
            weaker = {**security, name: "unsafe"}
            assert sends_headers(context(settings=Settings(), call=replying(200, weaker))).state == "fail"

    def test_headers_lost_on_404(self) -> None:
        """One answer without them is enough to fail, and is named."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(404, {}, b"") if "canary" in path else full(method, path, headers, body)

        service_headers = {
            "x-frame-options": "DENY",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        service_headers |= {
            "content-security-policy": "frame-ancestors 'none'",
            "x-content-type-options": "nosniff",
        }
        service_headers |= {
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        full = replying(200, service_headers)
        outcome = sends_headers(context(settings=Settings(), call=call))
        assert (outcome.state, outcome.n) == ("fail", 7)
        assert "cache-control on 404" in outcome.text

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
