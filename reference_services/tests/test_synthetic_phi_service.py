"""synthetic-phi-service over HTTP: the Go design's seven endpoints, its metrics, spans and log fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from opentelemetry.sdk.trace.export import SpanExportResult

from reference_services import synthetic_phi
from reference_services.synthetic_phi import api, domain, proofs

NAME = "synthetic-phi-service"
URL = "/synthetic-patient"


@pytest.fixture
def client(world: Any) -> Any:
    return world.client(NAME)


def sample(client: Any, name: str) -> float:
    for line in client.get("/metrics").get_data(as_text=True).splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} is not exposed")


class TestSinglePatient:
    """`GET /synthetic-patient`."""

    def test_a_seed_gives_its_patient(self, client: Any) -> None:
        """A seed and an index name one patient; the index defaults to 0."""
        assert client.get(f"{URL}?seed=7&index=3").get_json() == domain.patient(7, 3)
        assert client.get(f"{URL}?seed=7").get_json() == domain.patient(7, 0)

    def test_without_a_seed_it_is_new(self, client: Any) -> None:
        """No two calls give the same patient or record number."""
        made = [client.get(URL).get_json() for _ in range(50)]
        assert len({patient["id"] for patient in made}) == 50
        assert len({patient["medical_record_number"] for patient in made}) == 50

    @pytest.mark.parametrize(
        ("query", "errors"),
        [
            ("seed=-1", [{"pointer": "/seed", "code": "greater_than_equal"}]),
            ("seed=1.5", [{"pointer": "/seed", "code": "int_parsing"}]),
            (f"seed={2**53}", [{"pointer": "/seed", "code": "less_than_equal"}]),
            ("seed=1&index=2147483648", [{"pointer": "/index", "code": "less_than_equal"}]),
            ("index=1", [{"pointer": "/index", "code": "seed_missing"}]),
        ],
    )
    def test_bad_queries(self, client: Any, query: str, errors: list[dict[str, str]]) -> None:
        """A parameter out of range is 422 with its pointer."""
        answer = client.get(f"{URL}?{query}")
        assert (answer.status_code, answer.get_json()["errors"]) == (422, errors)


class TestBatch:
    """`POST /synthetic-patient`."""

    def test_a_batch(self, client: Any) -> None:
        """A batch has its patients, their count, and the metadata that makes it again."""
        body = client.post(URL, json={"count": 100, "seed": 7}).get_json()
        metadata = body.pop("metadata")
        assert body == {"patients": domain.patients(7, 0, 100), "count": 100}
        assert metadata.pop("generation_time").endswith("Z")
        assert metadata == {
            "compliance": "HIPAA_SYNTHETIC", "phi_safe": "true", "seed": 7, "index": 0,
            "generator_version": domain.GENERATOR_VERSION,
        }  # fmt: skip

    def test_the_metadata_makes_it_again(self, client: Any) -> None:
        """A batch without a seed can be had again, in parts, by the seed and index it names."""
        first = client.post(URL, json={"count": 9}).get_json()
        seed, index = first["metadata"]["seed"], first["metadata"]["index"]
        again = [
            patient
            for start, count in ((0, 4), (4, 5))
            for patient in client.post(
                URL, json={"count": count, "seed": seed, "index": index + start}
            ).get_json()["patients"]
        ]
        assert again == first["patients"]

    @pytest.mark.parametrize(
        ("count", "code"),
        [
            (0, "greater_than_equal"), (101, "less_than_equal"), (-1, "greater_than_equal"), ("5", "int_type"),
            (5.0, "int_type"), (True, "int_type"), (None, "int_type"), (10**18, "less_than_equal"),
        ],
    )  # fmt: skip
    def test_bad_counts(self, client: Any, count: object, code: str) -> None:
        """Only whole numbers from 1 to 100 are counts."""
        answer = client.post(URL, json={"count": count})
        assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
        assert answer.get_json()["errors"] == [{"pointer": "/count", "code": code}]

    def test_the_last_index(self, client: Any) -> None:
        """A batch may end at the last index and not behind it."""
        last = {"count": 2, "seed": 1, "index": domain.MAX_INDEX - 1}
        assert client.post(URL, json=last).status_code == 200
        beyond = client.post(URL, json={**last, "index": domain.MAX_INDEX})
        assert beyond.get_json()["errors"] == [{"pointer": "/index", "code": "too_large"}]

    def test_answers_satisfy_their_schema(self, client: Any) -> None:
        """Patients and batches are what the committed description says."""
        path = Path(synthetic_phi.__file__).with_name("openapi.yaml")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, answer in (
            ("SyntheticPatient", client.get(URL)),
            ("Batch", client.post(URL, json={"count": 20})),
        ):
            schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
            Draft202012Validator(schema).validate(answer.get_json())

    def test_a_record_outside_its_range_never_leaves(
        self, client: Any, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A generator gone wrong makes a 500, not a patient who could exist."""
        real = domain.patients
        monkeypatch.setattr(
            domain,
            "patients",
            lambda *source: [{**patient, "ssn": "219-09-9999"} for patient in real(*source)],
        )
        for answer in (client.get(URL), client.post(URL, json={"count": 2})):
            assert (answer.status_code, answer.get_json()["code"]) == (500, "not_synthetic")
            assert b"219-09-9999" not in answer.data
        assert client.get("/readiness").get_json()["checks"]["data_generator"] == "not_ready"


class TestVerify:
    """`POST /synthetic-patient/verify`."""

    def test_with_its_seed(self, client: Any) -> None:
        """Seed and index prove every member."""
        patient = domain.patient(7, 3)
        body = client.post(f"{URL}/verify", json={"patient": patient, "seed": 7, "index": 3}).get_json()
        assert (body["synthetic"], body["proven"], body["unproven"]) == (True, len(patient), 0)

    def test_without_its_seed(self, client: Any) -> None:
        """Without them, members that have no reserved range stay unproven."""
        body = client.post(f"{URL}/verify", json={"patient": domain.patient(7, 3)}).get_json()
        verdicts = {member["member"]: member["verdict"] for member in body["members"]}
        assert body["synthetic"] is False
        assert {name for name, verdict in verdicts.items() if verdict == "proven"} == set(proofs.PROOFS)

    def test_a_real_looking_record(self, client: Any, world: Any) -> None:
        """Somebody's record is unproven, and neither value nor unknown member name is repeated or logged."""
        body = {"patient": {"ssn": "219-09-9999", "jane.roe@mail.test": 1}}
        answer = client.post(f"{URL}/verify", json=body)
        got = answer.get_json()
        members = {(item["member"], item["verdict"], item["reason"]) for item in got.pop("members")}
        assert got == {"synthetic": False, "proven": 0, "unproven": 2}
        assert members == {
            ("ssn", "unproven", "outside_reserved_range"),
            (None, "unproven", "no_reserved_range_exists"),
        }
        assert "219-09-9999" not in json.dumps(world.log_lines(NAME))

    @pytest.mark.parametrize("patient", [{}, [], "x", None, {str(i): i for i in range(65)}])
    def test_no_record(self, client: Any, patient: object) -> None:
        """What is no record of 1 to 64 members is 422."""
        assert client.post(f"{URL}/verify", json={"patient": patient}).status_code == 422


class TestTelemetry:
    """Metrics, spans, log lines."""

    def test_patients_are_counted(self, client: Any) -> None:
        """The counter starts at 0 and counts patients, not requests."""
        name = "synthetic_phi_patients_generated_total"
        assert sample(client, name) == 0
        client.get(URL)
        client.post(URL, json={"count": 41})
        client.post(URL, json={"count": 0})
        assert sample(client, name) == 42

    def test_its_four_metrics(self, client: Any) -> None:
        """The Go design's four metrics are there with its names and labels."""
        client.get(URL)
        client.get("/compliance/status")
        text = client.get("/metrics").get_data(as_text=True)
        for line in (
            "# TYPE synthetic_phi_patients_generated_total counter",
            "# TYPE synthetic_phi_request_duration_seconds histogram",
            "# TYPE synthetic_phi_active_requests gauge",
            "# TYPE synthetic_phi_compliance_checks_total counter",
            'synthetic_phi_request_duration_seconds_count{endpoint="/synthetic-patient",method="GET",status="200"} 1.0',
        ):
            assert line in text

    @pytest.mark.parametrize(
        ("method", "body", "name"),
        [("GET", None, "generate_single_patient"), ("POST", {"count": 3}, "generate_batch_patients")],
    )
    def test_spans(self, client: Any, world: Any, method: str, body: object, name: str) -> None:
        """Generating is a child span of the request's span."""
        client.open(URL, method=method, json=body)
        spans = {span.name: span for span in world.spans(NAME)}
        assert spans[name].parent.span_id == spans[f"{method} {URL}"].context.span_id

    def test_log_fields(self, client: Any, world: Any) -> None:
        """One patient's line has its id and diagnosis count, a batch's line its size, both the trace id."""
        patient = client.get(URL).get_json()
        client.post(URL, json={"count": 3})
        lines = {line["event"]: line for line in world.log_lines(NAME)}
        single, batch = lines["generated_synthetic_patient"], lines["generated_synthetic_batch"]
        assert single["patient_id"] == patient["id"]
        assert single["diagnosis_count"] == len(patient["diagnosis"])
        assert batch["batch_size"] == 3
        assert len(single["trace_id"]) == len(batch["trace_id"]) == 32

    def test_nothing_else_of_a_patient_is_logged(self, client: Any, world: Any) -> None:
        """Names, numbers and diagnoses stay out of logs, spans and metrics."""
        patient = client.get(URL).get_json()
        text = json.dumps(world.log_lines(NAME)) + client.get("/metrics").get_data(as_text=True)
        text += "".join(span.to_json() for span in world.spans(NAME))
        for secret in (
            patient["last_name"],
            patient["ssn"],
            patient["medical_record_number"],
            patient["diagnosis"][0],
        ):
            assert secret not in text


class TestReadiness:
    """`GET /readiness`."""

    def test_its_checks(self, client: Any) -> None:
        """The Go design's three checks are ready in steady state, and so is the trail that every route needs."""
        names = ("data_generator", "metrics", "tracing", "audit_trail")
        assert client.get("/readiness").get_json() == {"ready": True, "checks": dict.fromkeys(names, "ready")}

    def test_the_generator_check_can_fail(self, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A generator that gives other patients than its version promises is not ready."""
        monkeypatch.setattr(domain, "KNOWN_ANSWER", "0" * 64)
        answer = client.get("/readiness")
        assert answer.status_code == 503
        assert answer.get_json()["checks"]["data_generator"] == "not_ready"

    def test_a_collector_away_does_not_take_it_down(
        self, client: Any, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Spans that cannot be sent make tracing degraded, and the service stays ready."""
        (exporter,) = world.obs(NAME).tracing._exporters
        monkeypatch.setattr(exporter.inner, "export", lambda _spans: SpanExportResult.FAILURE)
        client.get("/synthetic-patient")
        answer = client.get("/readiness")
        assert (answer.status_code, answer.get_json()["checks"]["tracing"]) == (200, "degraded")

    def test_broken_metrics_do_not_take_it_down(
        self, client: Any, world: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A registry that cannot be collected shows, and the service stays ready."""
        monkeypatch.setattr(world.obs(NAME).metrics.registry, "collect", None)
        answer = client.get("/readiness")
        assert (answer.status_code, answer.get_json()["checks"]["metrics"]) == (200, "degraded")


def test_the_manifest_names_this_service() -> None:
    """The service's own facts are the manifest's."""
    assert (api.INFO.name, api.INFO.prefix, api.INFO.port) == (NAME, "synthetic_phi", 8081)
