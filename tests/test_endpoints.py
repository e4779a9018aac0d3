"""The operational endpoints, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from healthobs import Observability, Settings
from healthobs.compliance import Control, Outcome, Reply
from healthobs.endpoints import (
    AuthorizationUnavailable,
    Endpoints,
    InsufficientScope,
    InvalidCredentials,
    Request,
)
from healthobs.problems import Response


@dataclass(frozen=True)
class Someone:
    """A principal."""

    subject: str = "auditor-7"


def authorize(request: Request, scope: str) -> Someone | None:
    """Accept the credential that is the scope's own name; refuse what is no credential at all."""
    if request.headers["authorization"] == "Bearer forged":
        raise InvalidCredentials
    if request.headers["authorization"] == "Bearer low":
        raise InsufficientScope(Someone("clerk-3"))
    return Someone() if request.headers["authorization"] == f"Bearer {scope}" else None


@pytest.fixture
def obs(tmp_path: Path) -> Iterator[Observability]:
    """An `Observability` with trail and controls."""
    held = Observability(
        Settings(
            service_name="svc",
            endpoints=True,
            log_level="critical",
            audit_database_url=f"sqlite:///{tmp_path / 'audit.db'}",
            audit_key_file=tmp_path / "audit.key",
            audit_retention_days=365,
        )
    )
    yield held
    held.close()


def get(
    obs: Observability, path: str, *, bearer: str | None = None, guarded: bool = True, **query: Any
) -> Response:
    """Ask once."""
    headers = {} if bearer is None else {"authorization": f"Bearer {bearer}"}
    values = {name: value if isinstance(value, list) else [value] for name, value in query.items()}
    endpoints = Endpoints(obs, authorize if guarded else None)
    response = endpoints.handle(Request("GET", path, values, headers))
    assert response is not None
    return response


class TestAuthorize:
    """`Authorize`, which an application supplies."""

    def test_one_that_raises_says_no(self, obs: Observability) -> None:
        """What it raises may name the credentials: it is counted, shown nowhere, and counts as no."""

        def faulty(request: Request, _scope: str) -> Someone | None:
            raise KeyError(request.headers["authorization"])

        request = Request("GET", "/audit/trail", {}, {"authorization": "Bearer tok-Ottoline"})
        answer = Endpoints(obs, faulty).handle(request)
        assert answer is not None
        assert (answer.status, b"Ottoline" in answer.body) == (403, False)
        assert b'healthobs_internal_errors_total{component="hook"} 1.0' in obs.metrics.exposition(None)[1]

    @pytest.mark.parametrize("path", ["/audit/trail", "/compliance/status"])
    def test_one_that_cannot_tell_now(self, obs: Observability, path: str) -> None:
        """Its caller is to try again, and is not told that a right is lacking; nothing is shown and nothing a fault."""

        def away(_request: Request, _scope: str) -> Someone | None:
            raise AuthorizationUnavailable(retry_after_s=7)

        answer = Endpoints(obs, away).handle(Request("GET", path, {}, {"authorization": "Bearer good"}))
        assert answer is not None
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "authorization_unavailable")
        assert dict(answer.headers)["Retry-After"] == "7"
        assert b'healthobs_internal_errors_total{component="hook"} 1.0' not in obs.metrics.exposition(None)[1]


class TestAuditTrail:
    """`/audit/trail`."""

    def test_needs_a_credential_with_the_scope(self, obs: Observability) -> None:
        """401 without a credential, 403 without the scope or without a configured check."""
        assert get(obs, "/audit/trail").status == 401
        assert dict(get(obs, "/audit/trail").headers)["WWW-Authenticate"] == "Bearer"
        forged = get(obs, "/audit/trail", bearer="forged")
        assert (forged.status, dict(forged.headers)["WWW-Authenticate"]) == (401, "Bearer")
        assert get(obs, "/audit/trail", bearer="compliance:read").status == 403
        assert get(obs, "/audit/trail", bearer="low").status == 403
        assert get(obs, "/audit/trail", bearer="audit:read", guarded=False).status == 403

    def test_reading_is_tied_to_the_callers_trace(self, obs: Observability) -> None:
        """The entry about a reading has trace, span and request id: the caller's where it sent them."""
        endpoints = Endpoints(obs, authorize)
        headers = {
            "authorization": "Bearer audit:read",
            "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
            "x-request-id": "6a1f6b8e-0a4e-4b0e-9d35-2f1f5c0d9b11",
        }
        response = endpoints.handle(Request("GET", "/audit/trail", {}, headers))
        assert response is not None
        (told,) = json.loads(response.body)["recent_entries"]
        assert (told["trace_id"], told["request_id"]) == ("ab" * 16, headers["x-request-id"])
        newest = json.loads(get(obs, "/audit/trail", bearer="audit:read").body)["recent_entries"][0]
        assert len(newest["trace_id"]) == 32
        assert newest["trace_id"] != told["trace_id"]

    def test_shows_what_was_recorded(self, obs: Observability) -> None:
        """Entries come with index, ids and hash; the reading is itself the newest of them."""
        assert obs.audit is not None
        obs.audit.append(
            {"action": "payment.charge", "actor": "till-3", "resource_type": "payment", "resource_id": "pay_1",
             "details": {"amount": 5}, "trace_id": "ab" * 16, "subject": "s-1", "reason": "broke the glass",
             "purpose": "BTG", "classification": "R"}
        )  # fmt: skip
        body = json.loads(get(obs, "/audit/trail", bearer="audit:read").body)
        assert (body["total_entries"], body["retention_days"], body["checkpoint"]["size"]) == (2, 365, 2)
        read, charged = body["recent_entries"]
        assert (read["action"], read["user"], read["index"]) == ("audit.read", "auditor-7", 1)
        assert {
            name: charged[name]
            for name in (
                "index",
                "action",
                "user",
                "outcome",
                "transaction_id",
                "details",
                "subject",
                "reason",
                "purpose",
                "classification",
            )
        } == {
            "index": 0,
            "action": "payment.charge",
            "user": "till-3",
            "outcome": "ok",
            "transaction_id": "pay_1",
            "details": {"amount": 5},
            "subject": "s-1",
            "reason": "broke the glass",
            "purpose": "BTG",
            "classification": "R",
        }
        assert charged["trace_id"] == "ab" * 16
        assert len(charged["hash"]) == 64

    def test_filters_and_pages(self, obs: Observability) -> None:
        """Filters narrow, pages follow one another without loss or repetition."""
        assert obs.audit is not None
        for number in range(7):
            obs.audit.append({"action": "a.b", "actor": f"actor-{number % 2}", "resource_id": f"r{number}"})
        found: list[str] = []
        cursor: dict[str, str] = {}
        while True:
            body = json.loads(
                get(obs, "/audit/trail", bearer="audit:read", actor="actor-0", limit="3", **cursor).body
            )
            assert body["total_entries"] == 4
            found += [entry["resource_id"] for entry in body["recent_entries"]]
            if body["next_cursor"] is None:
                break
            cursor = {"cursor": body["next_cursor"]}
        assert found == ["r6", "r4", "r2", "r0"]

    @pytest.mark.parametrize(
        ("query", "pointer"),
        [
            ({"limit": "0"}, "/limit"),
            ({"limit": "1001"}, "/limit"),
            ({"limit": "078-05-1120"}, "/limit"),
            ({"limit": "²"}, "/limit"),
            ({"limit": "0000000019999"}, "/limit"),
            ({"limit": "000000001" + "9" * 5000}, "/limit"),
            ({"start_date": "yesterday"}, "/start_date"),
            ({"end_date": "2026-01-01T00:00:00"}, "/end_date"),
            ({"actor": ["a", "b"]}, "/actor"),
            ({"ssn": "078-05-1120"}, "/"),
        ],
    )
    def test_bad_queries(self, obs: Observability, query: dict[str, Any], pointer: str) -> None:
        """A bad parameter is named, never echoed; nothing is read or recorded."""
        response = get(obs, "/audit/trail", bearer="audit:read", **query)
        assert (response.status, json.loads(response.body)["errors"][0]["pointer"]) == (422, pointer)
        assert b"078-05-1120" not in response.body
        assert obs.audit is not None
        assert obs.audit.checkpoint().size == 0

    @given(cursor=st.text(max_size=30), limit=st.text(max_size=6))
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def test_hostile_values_are_refused(self, obs: Observability, cursor: str, limit: str) -> None:
        """No cursor or limit makes a 500."""
        assert get(obs, "/audit/trail", bearer="audit:read", cursor=cursor, limit=limit).status in (200, 422)

    def test_store_that_refuses(self, obs: Observability, tmp_path: Path) -> None:
        """When the reading cannot be recorded, nothing is read: 503."""
        (tmp_path / "audit.db").write_bytes(b"no database " * 512)
        assert get(obs, "/audit/trail", bearer="audit:read").status == 503

    def test_no_trail(self) -> None:
        """Without a trail there is nothing to show."""
        obs = Observability(Settings(endpoints=True))
        assert get(obs, "/audit/trail", bearer="audit:read").status == 404
        obs.close()


class TestComplianceStatus:
    """`/compliance/status`."""

    def test_states_are_measured(self, obs: Observability) -> None:
        """At first everything is unknown; after a round of probes it is not."""
        before = json.loads(get(obs, "/compliance/status").body)
        assert {control["state"] for control in before["controls"]} == {"unknown"}
        assert obs.controls is not None
        obs.controls.run()
        after = json.loads(get(obs, "/compliance/status").body)
        assert {control["id"]: control["state"] for control in after["controls"]}["H-312.b"] == "pass"
        assert after["counts"] != before["counts"]

    def test_evidence_needs_the_scope(self, obs: Observability) -> None:
        """Everybody sees states; the evidence behind them is for readers with the scope."""
        assert b'"evidence"' not in get(obs, "/compliance/status").body
        assert b'"evidence"' in get(obs, "/compliance/status", bearer="compliance:read").body
        assert get(obs, "/compliance/status", bearer="audit:read").status == 403

    def test_reading_the_evidence_is_an_entry(self, obs: Observability) -> None:
        """Who reads evidence is recorded; without that record nothing is shown. States alone are open."""
        get(obs, "/compliance/status")
        get(obs, "/compliance/status", bearer="compliance:read")
        assert obs.audit is not None
        (entry,) = obs.audit.read(action="compliance.read").entries
        assert (entry["actor"]["kind"], entry["outcome"]) == ("client", "ok")
        obs.audit.close()
        assert get(obs, "/compliance/status", bearer="compliance:read").status == 503
        assert get(obs, "/compliance/status").status == 200

    def test_gate(self, obs: Observability) -> None:
        """`?gate=1` is 409 while a required control is not accepted; anything else is refused."""
        assert get(obs, "/compliance/status", gate="1").status == 409
        assert get(obs, "/compliance/status", gate="0").status == 200
        assert get(obs, "/compliance/status", gate="yes").status == 422
        assert [get(obs, "/compliance/status", **{name: "1"}).status for name in ("Gate", "gates")] == [
            422
        ] * 2

    @pytest.mark.parametrize(("first", "then", "answer"), [("fail", "pass", 409), ("pass", "fail", 200)])
    def test_gate_and_rows_are_of_one_moment(self, first: Any, then: Any, answer: int) -> None:
        """A round that ends while somebody asks makes no answer whose body says something else than its status."""
        now: list[Any] = [first]
        own = Control(
            "A-1", "policy 1", "company", "Title", "seen", "probe", lambda _: Outcome(now[0], "seen")
        )
        scopes = ("phi", "chd", "part11", "finance", "signatures", "devices")
        held = Observability(
            Settings(endpoints=True, headers=True, control_interval_seconds=0, out_of_scope=scopes),
            controls=[own],
        )
        engine = held.controls
        assert engine is not None
        engine.bind(lambda *_: Reply(200, {}, b""))
        status = engine.status

        def overtaken(*, detail: bool = False) -> dict[str, Any]:
            body = status(detail=detail)
            now[0] = then
            engine.run()
            return body

        engine.run()
        for name in {*engine.gate_failures()} - {"A-1"}:
            engine.controls[name] = replace(engine.controls[name], required=False)
        engine.status = overtaken  # type: ignore[method-assign]
        response = get(held, "/compliance/status", gate="1")
        (row,) = (row for row in json.loads(response.body)["controls"] if row["id"] == "A-1")
        held.close()
        assert (response.status, row["state"], "shuts_gate" in row) == (answer, first, answer == 409)


@pytest.mark.parametrize(
    ("path", "action", "scope"),
    [
        ("/audit/trail", "audit.read", "audit:read"),
        ("/compliance/status", "compliance.read", "compliance:read"),
    ],
)
class TestRefusedReadings:
    """Attempts to read what a caller may not (PCI DSS 10.2.1.3 and 10.2.1.4)."""

    @pytest.mark.parametrize(
        ("bearer", "status", "actor", "kind"),
        [
            ("forged", 401, None, None),
            ("other", 403, None, None),
            ("low", 403, "clerk-3", "client"),
        ],
    )
    def test_are_entries(
        self, obs: Observability, path: str, action: str, scope: str,
        bearer: str, status: int, actor: str | None, kind: str | None,
    ) -> None:  # fmt: skip
        """Credentials that were refused leave an entry, which names the caller where `authorize` knows it."""
        assert get(obs, path, bearer=bearer).status == status
        assert obs.audit is not None
        (entry,) = obs.audit.read().entries
        assert (entry["action"], entry["outcome"]) == (action, "denied")
        assert entry["actor"] == {"id": actor, "kind": kind}
        assert get(obs, path, bearer=scope).status == 200
        assert [entry["outcome"] for entry in obs.audit.read(action=action).entries] == ["ok", "denied"]

    def test_without_credentials_are_counted_only(
        self, obs: Observability, path: str, action: str, scope: str
    ) -> None:
        """Else anybody could fill the trail; nor is there an entry where nobody checks credentials."""
        get(obs, path)
        get(obs, path, bearer=scope, guarded=False)
        assert obs.audit is not None
        assert obs.audit.checkpoint().size == 0
        counted = obs.metrics.exposition(None)[1].decode()
        assert f'healthobs_probe_requests_total{{code="403",probe="{path}"}} 1.0' in counted
        assert action not in counted

    def test_of_a_control_are_none(self, obs: Observability, path: str, action: str, scope: str) -> None:
        """A control of this process asks with credentials that must be refused: nobody's attempt."""
        request = Request("GET", path, {}, {"authorization": "Bearer forged"}, own=True)
        answer = Endpoints(obs, authorize).handle(request)
        assert answer is not None
        assert answer.status == 401
        assert obs.audit is not None
        assert obs.audit.read(action=action).total == 0
        assert get(obs, path, bearer=scope).status == 200

    def test_without_a_caller_that_says_who(
        self, obs: Observability, path: str, action: str, scope: str
    ) -> None:
        """A hook that raises, or whose principal has no subject, counts as no; the attempt is an entry too."""

        def faulty(request: Request, _scope: str) -> Someone | None:
            if request.headers["authorization"] == "Bearer nobody":
                raise InsufficientScope(object())  # type: ignore[arg-type]
            raise KeyError(request.headers["authorization"])

        for bearer in ("nobody", scope):
            request = Request("GET", path, {}, {"authorization": f"Bearer {bearer}"})
            answer = Endpoints(obs, faulty).handle(request)
            assert answer is not None
            assert answer.status == 403
        assert obs.audit is not None
        found = obs.audit.read(action=action).entries
        assert [(entry["outcome"], entry["actor"]["id"]) for entry in found] == [("denied", None)] * 2

    def test_stay_refused_without_the_trail(
        self, obs: Observability, path: str, action: str, scope: str
    ) -> None:
        """When the attempt cannot be recorded the refusal stands, and the loss is counted and logged."""
        assert obs.audit is not None
        obs.audit.close()
        assert get(obs, path, bearer="forged").status == 401
        assert get(obs, path, bearer="low").status == 403
        assert b'healthobs_internal_errors_total{component="audit"} 2.0' in obs.metrics.exposition(None)[1]
        assert get(obs, path, bearer=scope).status == 503
        assert action


class TestHandle:
    """`Endpoints.handle`."""

    def test_other_paths(self, obs: Observability) -> None:
        """What is no endpoint is left to the application."""
        assert Endpoints(obs).handle(Request("GET", "/patients", {}, {})) is None

    @pytest.mark.parametrize("headers", [False, True])
    @pytest.mark.parametrize(
        "path", ["/health", "/readiness", "/metrics", "/compliance/status", "/audit/trail"]
    )
    def test_nothing_is_kept(self, path: str, *, headers: bool) -> None:
        """Every answer, a refusal too, has `no-store`, where the headers of every response do not bring it anyway."""
        held = Observability(Settings(endpoints=True, headers=headers, log_level="critical"))
        for method in ("GET", "DELETE"):
            answer = Endpoints(held).handle(Request(method, path, {}, {}))
            assert answer is not None
            kept = [value for name, value in answer.headers if name == "Cache-Control"]
            assert kept == ([] if headers else ["no-store"])
        held.close()

    def test_metrics_negotiates(self, obs: Observability) -> None:
        """`/metrics` answers in the format that `Accept` asks for."""
        endpoints = Endpoints(obs)
        plain = endpoints.handle(Request("GET", "/metrics", {}, {}))
        asked = endpoints.handle(Request("GET", "/metrics", {}, {"accept": "application/openmetrics-text"}))
        assert plain is not None
        assert asked is not None
        assert dict(plain.headers)["Content-Type"].startswith("text/plain")
        assert dict(asked.headers)["Content-Type"].startswith("application/openmetrics-text")
        assert asked.body.endswith(b"# EOF\n")

    def test_health_negotiates(self, obs: Observability) -> None:
        """`/health` and `/readiness` answer in the draft's format when it is asked for, not to be kept."""
        for path in ("/health", "/readiness"):
            asked = Endpoints(obs).handle(Request("GET", path, {}, {"accept": "application/health+json"}))
            assert asked is not None
            assert dict(asked.headers) == {
                "Content-Type": "application/health+json",
                "Cache-Control": "no-store",
            }
            assert json.loads(asked.body)["serviceId"] == "svc"
