"""`tenant`: declared, bounded, in every signal; a name that nobody declared is kept nowhere."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st

from asgi_calls import call_asgi
from fronts import FRONTS, Front
from healthobs import (
    ConfigurationError,
    Observability,
    Settings,
    asgi,
    audited,
    carry,
    counted,
    job,
    observe,
    set_tenant,
    use,
    use_tenant,
)
from healthobs.metrics import Metrics
from healthobs.testing import Capture

TENANTS = ("north", "south.clinic")
HEADER: dict[str, Any] = {"tenants": TENANTS, "tenant_header": "X-Tenant"}
#: What callers send in the place of a tenant: an SSN, a name, a card, two names, one of the wrong case.
STRANGERS = ["078-05-1120", "Jane Roe", "4111111111111111", "north,south.clinic", "North", "_other"]
COUNT = "svc_request_duration_seconds_count"
Make = Callable[..., Front]


@pytest.fixture(params=FRONTS.values(), ids=FRONTS.keys())
def make(request: pytest.FixtureRequest) -> Make:
    """Give each front end in turn."""
    front: Make = request.param
    return front


@observe("bill", log="info")
def bill() -> None:
    """Be something that a tenant is billed for."""


@counted("claims_total", labels={"kind": lambda kind: kind})
def claim() -> str:
    """Be counted in a counter of its own."""
    return "dental"


@audited("claim.read")
def read() -> None:
    """Be audited."""


class TestRequest:
    """A request whose tenant a header states."""

    def test_every_signal_has_it(self, make: Make) -> None:
        """Span, access line, both histograms, and what the view calls, say the same tenant."""
        front = make(**HEADER)
        front.look = bill
        assert front.get("/look", x_tenant="north").status == 200
        assert [(span.name, (span.attributes or {})["healthobs.tenant"]) for span in front.spans()] == [
            ("bill", "north"),
            ("GET /look", "north"),
        ]
        assert [json.loads(line)["tenant"] for line in front.stream.getvalue().splitlines()] == ["north"] * 2
        assert front.total(COUNT, tenant="north", endpoint="/look") == 1
        assert front.total("http_server_request_duration_seconds_count", tenant="north") == 1
        assert front.total("svc_operations_total", operation="bill", outcome="ok", tenant="north") == 1
        assert front.total("svc_operation_duration_seconds_count", tenant="north") == 1

    @pytest.mark.parametrize("name", STRANGERS)
    @pytest.mark.parametrize("redaction", ["watch", "strict"])
    def test_a_stranger_is_one_of_the_others(self, make: Make, name: str, redaction: str) -> None:
        """A name that is not declared counts as `_other`, and is in no signal, at no step of redaction."""
        front = make(**HEADER, redaction=redaction)
        front.look = bill
        front.get("/look", x_tenant=name)
        assert front.access()[0]["tenant"] == "_other"
        assert front.total(COUNT, tenant="_other") == 1
        assert name == "_other" or name not in front.telemetry()

    def test_strict_lets_a_declared_one_pass(self, make: Make) -> None:
        """What the settings declare is written in no code, and passes all the same."""
        front = make(**HEADER, redaction="strict")
        front.get("/own", x_tenant="south.clinic")
        assert front.total(COUNT, tenant="south.clinic") == 1
        assert (front.spans()[0].attributes or {})["healthobs.tenant"] == "south.clinic"
        assert front.total("healthobs_redactions_total") == 0

    def test_without_a_name(self, make: Make) -> None:
        """Where none is stated, the label is empty, and span and line have no such field."""
        front = make(**HEADER)
        front.get("/own")
        assert front.total(COUNT, tenant="") == 1
        assert "tenant" not in front.access()[0]
        assert "healthobs.tenant" not in (front.spans()[0].attributes or {})

    def test_not_from_a_caller_that_is_not_trusted(self, make: Make) -> None:
        """Whose trace is not continued, whose header is not believed."""
        front = make(**HEADER, trust_incoming=False)
        front.get("/own", x_tenant="north")
        assert front.total(COUNT, tenant="") == 1

    def test_stated_by_the_application(self, make: Make) -> None:
        """A claim of a verified token counts from the moment it is known, and wins over the header."""
        front = make(**HEADER)

        def look() -> None:
            bill()
            set_tenant("south.clinic")
            bill()

        front.look = look
        front.get("/look", x_tenant="north")
        assert front.access()[0]["tenant"] == "south.clinic"
        for tenant in TENANTS:
            assert front.total("svc_operations_total", outcome="ok", tenant=tenant) == 1

    def test_absent_when_none_is_declared(self, make: Make) -> None:
        """Without declared tenants, no series, field or attribute is another than before."""
        front, plain = make(), make()
        front.look = lambda: (set_tenant("north"), bill())  # type: ignore[func-returns-value]
        plain.look = bill
        front.get("/look", x_tenant="north")
        plain.get("/look")
        assert "north" not in front.telemetry()
        for name in (COUNT, "svc_operations_total", "http_server_request_duration_seconds_count"):
            assert front.samples(name) == plain.samples(name)
        assert [set(line) for line in front.access()] == [set(line) for line in plain.access()]
        assert [set(span.attributes or {}) for span in front.spans()] == [
            set(span.attributes or {}) for span in plain.spans()
        ]

    def test_a_dependency_in_a_thread(self) -> None:
        """What FastAPI runs in a thread states the tenant of the request, not of the thread."""
        with Capture(Settings(service_name="svc", tenants=TENANTS)) as capture:

            def whose() -> None:
                set_tenant("north")

            app = FastAPI()
            app.get("/x", dependencies=[Depends(whose)])(bill)
            asgi.init_app(app, capture.obs)
            call_asgi(app, "GET", "/x")
            assert [line["tenant"] for line in capture.log_lines] == ["north", "north"]
            asgi.remove_app(app)


class TestJob:
    """Work outside requests."""

    def test_a_job_has_one(self) -> None:
        """A job, its log lines, and the counters of its own functions are the tenant's, inside the block only."""
        with Capture(Settings(tenants=TENANTS)) as capture:
            with use_tenant("north"), job("claims"):
                claim()
                capture.obs.logs.emit("info", "half_done", {"tenant": "078-05-1120"})
            claim()
        assert (
            capture.metric("healthobs_operations_total", operation="claims", outcome="ok", tenant="north")
            == 1
        )
        assert capture.metric("claims_total", kind="dental", tenant="north") == 1
        assert capture.metric("claims_total", kind="dental", tenant="") == 1
        assert [(line["event"], line["tenant"]) for line in capture.log_lines] == [
            ("half_done", "north"),
            ("claims", "north"),
        ]
        assert "078-05-1120" not in json.dumps(capture.log_lines)

    @pytest.mark.parametrize("frameworks", [(), ("hipaa",)])
    def test_in_a_set_up_that_is_there(
        self, frameworks: tuple[str, ...], caplog: pytest.LogCaptureFixture
    ) -> None:
        """An adopted set-up of the standard library has the field in its records and in ours, in `strict` too."""
        obs = Observability(Settings(tenants=TENANTS, frameworks=frameworks), logs="processor")
        caplog.set_level("INFO")
        with use(obs), use_tenant("south.clinic"):
            logging.getLogger("billing").info("half_done")
            bill()
        obs.close()
        assert [vars(record)["tenant"] for record in caplog.records] == ["south.clinic"] * 2
        assert "[PHI" not in str([vars(record) for record in caplog.records])

    def test_threads(self) -> None:
        """`carry` takes it along; the thread's own context has none."""
        with Capture(Settings(tenants=TENANTS), install=True) as capture:
            with use_tenant("north"):
                carried = carry(bill)
            carried()
            bill()
        assert [line.get("tenant") for line in capture.log_lines] == ["north", None]

    def test_a_request_inside_has_its_own(self, make: Make) -> None:
        """What was stated around a request, by a test or an in-process gateway, is not the request's."""
        front = make(**HEADER)
        front.look = bill
        with use_tenant("north"):
            front.get("/look", x_tenant="south.clinic")
        assert [json.loads(line)["tenant"] for line in front.stream.getvalue().splitlines()] == [
            "south.clinic"
        ] * 2

    def test_an_own_label_stays(self) -> None:
        """A counter that has a label `tenant` of its own keeps it."""

        @counted("own_total", labels={"tenant": lambda name: name})
        def own() -> str:
            return "east"

        with Capture(Settings(tenants=("east",))) as capture, use_tenant("_other"):
            own()
        assert capture.metric("own_total", tenant="east") == 1


class TestAudit:
    """The audit entry."""

    def test_has_it(self) -> None:
        """An entry says whose it is; the same format without it where none was stated."""
        with Capture(Settings(tenants=TENANTS), audit=True) as capture:
            with use_tenant("078-05-1120"):
                read()
            with use_tenant("north"):
                read()
            read()
        newest_first = [entry.get("tenant") for entry in capture.audit_entries]
        assert newest_first in ([None, "north", "_other"], ["_other", "north", None])
        assert {entry["v"] for entry in capture.audit_entries} == {1}

    def test_an_outbox_takes_it(self) -> None:
        """An entry with a tenant is one that an outbox or spool may hand over."""
        with Capture(Settings(tenants=TENANTS), audit=True) as capture, use_tenant("north"):
            trail = capture.obs.audit
            assert trail is not None
            body = trail.encode({"action": "claim.read"})
            assert json.loads(body)["tenant"] == "north"
            assert trail.acceptable(trail.new_key(), body)


class TestDeclaration:
    """What may be declared."""

    @pytest.mark.parametrize("name", ["078-05-1120", "2024-03-01", "212-555-0123", "4111111111111111"])
    def test_no_identifier(self, name: str) -> None:
        """A name that redaction would mask is refused at start, without an echo."""
        with pytest.raises(ConfigurationError) as caught:
            Observability(Settings(tenants=("north", name)))
        assert name not in str(caught.value)
        assert "name 2" in str(caught.value)

    @pytest.mark.parametrize(
        ("tenants", "header"),
        [(("Jane Roe",), ""), (("_other",), ""), (("",), ""), ((), "X-Tenant"), (("north",), "X Tenant")],
    )
    def test_malformed(self, tenants: tuple[str, ...], header: str) -> None:
        """Names have no spaces and do not begin with an underscore; a header needs tenants."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(tenants=tenants, tenant_header=header)
        assert "Jane" not in str(caught.value)

    def test_at_most_a_hundred(self) -> None:
        """The product of tenants and series is bounded by both."""
        Settings(tenants=tuple(f"t{number}" for number in range(100)))
        with pytest.raises(ConfigurationError):
            Settings(tenants=tuple(f"t{number}" for number in range(101)))

    def test_from_the_environment(self) -> None:
        """Both come from variables."""
        found = Settings.from_env(
            {"HEALTHOBS_TENANTS": "north, south", "HEALTHOBS_TENANT_HEADER": "X-Tenant"}
        )
        assert (found.tenants, found.tenant_header) == (("north", "south"), "X-Tenant")


class TestBound:
    """Cardinality."""

    @given(names=st.lists(st.text(min_size=1), max_size=40), routes=st.integers(1, 12))
    def test_series_are_bounded(self, names: list[str], routes: int) -> None:
        """Whatever is stated, a metric has at most `max_series` series a tenant, none, and the others together."""
        with Capture(Settings(tenants=TENANTS, max_series=10)) as capture:
            counter = capture.obs.metrics.counter("c_total", "c", ("route",), by_tenant=True)
            for name in names:
                with use_tenant(name):
                    for route in range(routes):
                        value = "" if not name else name if name in TENANTS else "_other"
                        counter.labels(str(route), value).inc()
                    bill()
            shown = [
                s.labels for f in capture.obs.metrics.collect() for s in f.samples if s.name == "c_total"
            ]
            assert len(shown) <= 10 * (len(TENANTS) + 2) + 1
            named = {
                s.labels["tenant"]
                for f in capture.obs.metrics.collect()
                for s in f.samples
                if "tenant" in s.labels
            }
            assert named <= {"", "_other", *TENANTS}

    def test_one_tenant_does_not_use_up_another_ones(self) -> None:
        """The cap grows with the tenants, so that declaring them costs nobody a series."""
        metrics = Metrics(Settings(tenants=TENANTS, max_series=2))
        counter = metrics.counter("c_total", "c", ("route",), by_tenant=True)
        for tenant in ("north", "south.clinic", "", "_other"):
            for route in ("a", "b"):
                counter.labels(route, tenant).inc()
        assert (
            metrics.registry.get_sample_value("healthobs_label_overflow_total", {"metric": "c_total"}) is None
        )


WORKER = """
import sys
from healthobs import Observability, Settings, install, observe, use_tenant
obs = Observability(Settings(prefix="svc", tenants=("north", "south")))
install(obs)
@observe("bill")
def bill(): ...
for name in sys.argv[1:]:
    with use_tenant(name):
        bill()
print(obs.metrics.exposition(None)[1].decode())
"""


class TestProcesses:
    """Prometheus's multiprocess mode."""

    def test_workers_add_up(self, tmp_path: Path) -> None:
        """The counts of each tenant are exact over all workers."""
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        for names in (["north", "south", "078-05-1120"], ["north"]):
            done = subprocess.run(
                [sys.executable, "-c", WORKER, *names],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        for tenant, count in (("north", 2), ("south", 1), ("_other", 1)):
            labels = f'operation="bill",outcome="ok",tenant="{tenant}"'
            assert f"svc_operations_total{{{labels}}} {count}.0" in done.stdout
        assert "078-05" not in done.stdout
