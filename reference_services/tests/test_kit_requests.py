"""What comes in: bodies, forms and queries are accepted exactly, and refused without an echo."""

from __future__ import annotations

import io
import json
from datetime import date
from typing import Annotated, Any

import pytest
from gunicorn.http.errors import InvalidChunkSize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from one_service import refusal
from reference_services._kit import Model


class Line(Model):
    """A part of an order."""

    sku: Annotated[str, Field(max_length=8)]
    amount: Annotated[int, Field(ge=1, le=1000)]


class Order(Model):
    """A body with every kind of member."""

    count: Annotated[int, Field(ge=1, le=100)]
    day: date | None = None
    lines: Annotated[list[Line], Field(default_factory=list)]
    labels: Annotated[dict[str, int], Field(default_factory=dict)]
    ratio: float | None = None
    a_b: Annotated[int | None, Field(alias="a/b~c")] = None


class Query(Model):
    """Query parameters."""

    count: Annotated[int, Field(ge=1)] = 1
    flag: bool = False
    word: str | None = None
    most: Annotated[int, Field(ge=1)] | None = None


class Credentials(Model):
    """A form."""

    grant_type: str
    scope: str = ""


SECRET = "219-09-9999"


@pytest.fixture
def client(bench: Any) -> Any:
    kit = bench.kit

    @kit.post("/orders", body=Order, returns={201: Order}, summary="Order")
    def post(body: Order) -> Order:
        return body

    @kit.get("/orders", query=Query, returns={200: Query}, summary="Orders")
    def get(query: Query) -> Query:
        return query

    @kit.post("/form", body=Credentials, form=True, returns={200: Credentials}, summary="Form")
    def form(body: Credentials) -> Credentials:
        return body

    @kit.get("/orders/<order_id>", returns={200: None}, summary="One order")
    def one(order_id: str) -> dict[str, str]:
        return {"id": order_id}

    return bench.client()


def send(client: Any, raw: bytes | str, content_type: str = "application/json") -> Any:
    return client.post("/orders", data=raw, headers={"Content-Type": content_type})


class TestJsonBody:
    """JSON bodies."""

    def test_a_good_body_arrives(self, client: Any) -> None:
        """Strict types still read dates from JSON text."""
        answer = send(client, '{"count": 3, "day": "2025-01-31", "ratio": 1.5, "a/b~c": 2}')
        assert answer.status_code == 201
        assert answer.get_json() == {
            "count": 3, "day": "2025-01-31", "lines": [], "labels": {}, "ratio": 1.5, "a/b~c": 2,
        }  # fmt: skip

    @pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/fhir+json"])
    def test_json_media_types(self, client: Any, content_type: str) -> None:
        """Parameters and the +json suffix are JSON too (RFC 6839 §3.1)."""
        assert send(client, '{"count": 1}', content_type).status_code == 201

    @pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "text/x+json", "a"])
    def test_other_media_types(self, client: Any, content_type: str) -> None:
        """What is not JSON is 415."""
        assert refusal(send(client, '{"count": 1}', content_type))[:2] == (415, "unsupported_media_type")

    @pytest.mark.parametrize(
        ("raw", "code"),
        [
            (b"", "malformed_json"),
            (b"{", "malformed_json"),
            (b"\xef\xbb\xbf{}", "malformed_json"),
            (b"\xff\xfe{\x00}\x00", "malformed_json"),
            (b'{"count": 1}x', "malformed_json"),
            (b'{"count": 01}', "malformed_json"),
            (b'{"count": 1, "day": "\xff"}', "malformed_json"),
            (b'{"count": 1, "day": "\x00"}', "malformed_json"),
            (rb'{"count": 1, "day": "\ud800"}', "malformed_json"),
            (rb'{"count": 1, "day": "\udc00\ud800"}', "malformed_json"),
            (b"[" * 100_000, "malformed_json"),
            (b'{"a":' * 100_000, "malformed_json"),
            (b"[" * 900 + b"]" * 900, "malformed_json"),
            (b'{"count": 1, "count": 2}', "duplicate_member"),
            (b'{"count": 1, "labels": {"a": 1, "a": 1}}', "duplicate_member"),
            (b'{"count": 1, "ratio": NaN}', "not_a_number"),
            (b'{"count": 1, "ratio": -Infinity}', "not_a_number"),
            (b'{"count": 1, "ratio": 1e400}', "number_out_of_range"),
            (b'{"count": 1' + b"0" * 5000 + b"}", "number_out_of_range"),
            (b'{"count": 9223372036854775808}', "number_out_of_range"),
            (b'{"count": 1, "ratio": 1.' + b"0" * 500 + b"}", "number_out_of_range"),
        ],
    )
    def test_malformed(self, client: Any, raw: bytes, code: str) -> None:
        """What is not I-JSON is 400 with its code."""
        assert refusal(send(client, raw)) == (400, code, [])

    @pytest.mark.parametrize(
        ("value", "pointer", "code"),
        [
            ("5", "/count", "int_type"),
            (5.0, "/count", "int_type"),
            (5.5, "/count", "int_type"),
            (True, "/count", "int_type"),
            (None, "/count", "int_type"),
            (0, "/count", "greater_than_equal"),
            (101, "/count", "less_than_equal"),
            (2**62, "/count", "less_than_equal"),
            ([], "/count", "int_type"),
        ],
    )
    def test_invalid_values(self, client: Any, value: object, pointer: str, code: str) -> None:
        """A value of the wrong type or size is 422 with its pointer and code."""
        answer = send(client, json.dumps({"count": value}))
        assert refusal(answer) == (422, "invalid_request", [(pointer, code)])

    def test_every_error_is_listed(self, client: Any) -> None:
        """All errors come at once, each with the pointer to its place."""
        answer = send(
            client, json.dumps({"lines": [{"sku": "A"}, {"sku": "B" * 9, "amount": 0}], "a/b~c": "x"})
        )
        assert refusal(answer)[2] == [
            ("/count", "missing"),
            ("/lines/0/amount", "missing"),
            ("/lines/1/sku", "string_too_long"),
            ("/lines/1/amount", "greater_than_equal"),
            ("/a~1b~0c", "int_type"),
        ]

    @pytest.mark.parametrize("raw", ["[]", '"x"', "1", "null", "true"])
    def test_not_an_object(self, client: Any, raw: str) -> None:
        """Another JSON value than an object is 422 at the root."""
        assert refusal(send(client, raw))[::2] == (422, [("", "model_type")])

    def test_nul(self, client: Any) -> None:
        """An escaped U+0000 in text or names is 422 with its place; the text backslash-u-0000 is not one."""
        for raw, *pointers in (
            (rb'{"count": 1, "lines": [{"sku": "\u0000", "amount": 1}]}', "/lines/0/sku"),
            (rb'{"count": 1, "labels": {"\u0000": 1}}', "/labels"),
            (
                rb'{"day": "a\u0000", "lines": [1, {"sku": "\u0000b"}, "\u0000"]}',
                "/day",
                "/lines/2",
                "/lines/1/sku",
            ),
            (rb'{"\u0000": "\u0000", "other": {"day": ["\u0000"]}}', ""),
            (rb'"\u0000"', ""),
        ):
            places = [(pointer, "control_character") for pointer in pointers]
            assert refusal(send(client, raw)) == (422, "invalid_request", places)
        fine = send(client, rb'{"count": 1, "lines": [{"sku": "\\u0000", "amount": 1}]}')
        assert fine.status_code == 201

    @pytest.mark.parametrize("escaped", [True, False])
    def test_control_characters(self, client: Any, escaped: bool) -> None:
        """So is every other that is not shown, and every one that turns the direction, as an escape or as itself."""
        refused = {*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
        refused -= set(map(ord, "\t\n\r\x1d"))
        fine = "".join(map(chr, {*range(0x500), *range(0x2000, 0x2100), 0x1F600} - refused))

        def sent(*texts: str) -> Any:
            body = {"count": 1, "lines": [{"sku": text, "amount": 1} for text in texts]}
            return send(client, json.dumps(body, ensure_ascii=escaped).encode())

        assert sent(*(fine[at : at + 8] for at in range(0, len(fine), 8))).status_code == 201
        for code in refused:
            places = [("/lines/1/sku", "control_character")]
            assert refusal(sent("a", f"a{chr(code)}")) == (422, "invalid_request", places), code

    @pytest.mark.parametrize(
        "body",
        [
            {"count": SECRET},
            {"count": 1, SECRET: 1},
            {"count": 1, "labels": {SECRET: "x"}},
            {"count": 1, "day": SECRET},
            {"count": 1, "lines": [{"sku": SECRET, "amount": 1}]},
            {"count": 1, "lines": [{"sku": "a", "amount": 1, SECRET: 1}]},
            {"count": 1, "lines": SECRET},
        ],
    )
    def test_no_echo(self, client: Any, bench: Any, body: object) -> None:
        """Neither a value nor an unknown name of the request comes back, or reaches the log."""
        answer = send(client, json.dumps(body))
        assert answer.status_code == 422
        assert SECRET not in answer.get_data(as_text=True)
        assert SECRET not in str(answer.headers)
        assert SECRET not in bench.log.getvalue()

    def test_too_many_errors_are_cut(self, client: Any) -> None:
        """At most 50 errors are listed."""
        answer = send(client, json.dumps({"count": 1, "lines": [{"sku": i} for i in range(200)]}))
        assert len(refusal(answer)[2]) == 50

    def test_too_large(self, client: Any) -> None:
        """More than 1 MiB is 413."""
        raw = b'{"count": 1, "x": "' + b"x" * 1024 * 1024 + b'"}'
        assert refusal(send(client, raw))[:2] == (413, "content_too_large")

    def test_too_large_without_a_length(self, client: Any) -> None:
        """A chunked body is counted while it is read."""
        answer = client.open(
            "/orders",
            method="POST",
            input_stream=io.BytesIO(b" " * (1024 * 1024 + 1)),
            headers={"Content-Type": "application/json"},
            environ_overrides={"wsgi.input_terminated": True},
        )
        assert refusal(answer)[:2] == (413, "content_too_large")

    def test_compressed(self, client: Any) -> None:
        """A content coding is 415, so that no small body can unfold to a large one."""
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        assert refusal(client.post("/orders", data=b"x", headers=headers))[0] == 415

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
                lambda children: (
                    st.lists(children, max_size=3)
                    | st.dictionaries(st.sampled_from(["count", "lines", "labels", "x"]), children)
                ),
                max_leaves=8,
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    def test_anything_is_answered(self, client: Any, raw: bytes) -> None:
        """No body whatever makes a 500."""
        assert send(client, raw).status_code in {201, 400, 422}


class TestQuery:
    """Query strings."""

    def test_text_becomes_values(self, client: Any) -> None:
        """Parameters are text and are read as the model's types."""
        answer = client.get("/orders?count=5&flag=true&word=x&most=05")
        shown = {"count": 5, "flag": True, "word": "x", "most": 5}
        assert answer.get_json() == shown

    @pytest.mark.parametrize(
        ("query", "errors"),
        [
            ("count=0", [("/count", "greater_than_equal")]),
            ("count=x", [("/count", "int_parsing")]),
            ("count=", [("/count", "int_parsing")]),
            *(
                (f"count={text}", [("/count", "int_parsing")])
                for text in ("5.0", "1_0", "%2B5", "%205", "5%20")
            ),
            ("most=5.0&count=0", [("/count", "greater_than_equal"), ("/most", "int_parsing")]),
            (f"count=1{'0' * 5000}", [("/count", "int_parsing_size")]),
            ("count=1&count=1", [("/count", "repeated")]),
            (f"other={SECRET}", [("", "extra_forbidden")]),
            (f"{SECRET}=1&{SECRET}=2", [("", "extra_forbidden")]),
            ("word=%00", [("/word", "control_character")]),
            ("other=%00&%00=x", [("", "control_character")]),
            ("%00=x", [("", "extra_forbidden")]),
            ("word=a%E2%80%AEb", [("/word", "control_character")]),
        ],
    )
    def test_refused(self, client: Any, query: str, errors: list[tuple[str, str]]) -> None:
        """Unknown, repeated and unreadable parameters are 422, and nothing of them comes back."""
        answer = client.get(f"/orders?{query}")
        assert refusal(answer) == (422, "invalid_request", errors)
        assert SECRET not in answer.get_data(as_text=True)

    def test_a_route_without_parameters_takes_none(self, client: Any) -> None:
        """Parameters that no route declares are refused rather than ignored."""
        assert refusal(client.get("/?debug=1"))[:2] == (422, "invalid_request")

    def test_broken_encoding(self, client: Any) -> None:
        """Bytes that are no UTF-8 stay encoded, and are no fault."""
        assert client.get("/orders?word=%ff").get_json()["word"] == "%FF"


class TestForm:
    """Form bodies."""

    def test_a_form_arrives(self, client: Any) -> None:
        """A form is read into its model."""
        answer = client.post("/form", data={"grant_type": "client_credentials"})
        assert answer.get_json() == {"grant_type": "client_credentials", "scope": ""}

    def test_json_is_no_form(self, client: Any) -> None:
        """A form route refuses JSON with 415."""
        assert refusal(client.post("/form", json={"grant_type": "x"}))[0] == 415

    def test_a_repeated_field_is_refused(self, client: Any) -> None:
        """A repeated field is 422 (RFC 6749 §3.2 forbids it)."""
        answer = client.post("/form", data={"grant_type": ["a", "b"]})
        assert refusal(answer)[2] == [("/grant_type", "repeated")]


class TestPath:
    """Path parameters."""

    def test_nul_is_not_found(self, client: Any) -> None:
        """A path with U+0000 names nothing."""
        assert refusal(client.get("/orders/a%00b"))[:2] == (404, "not_found")

    def test_any_other_text_arrives(self, client: Any) -> None:
        """Percent-encoded text reaches the view decoded."""
        assert client.get("/orders/%C3%A9%20x").get_json() == {"id": "é x"}


class TestTransfer:
    """A body that the server cannot read to its end."""

    @pytest.mark.parametrize(
        ("fault", "code"),
        [(InvalidChunkSize(SECRET.encode()), "malformed_body"), (OSError(SECRET), "bad_request")],
    )
    @pytest.mark.parametrize(
        ("path", "media"), [("/orders", "application/json"), ("/form", "application/x-www-form-urlencoded")]
    )
    def test_a_broken_body_is_the_clients_fault(
        self, client: Any, fault: Exception, code: str, path: str, media: str
    ) -> None:
        """Gunicorn raises at the first read of a broken chunk: a 400 without an echo, not a 500."""

        class Broken(io.BytesIO):
            def read(self, *_size: Any) -> bytes:
                raise fault

            readinto = readline = read  # type: ignore[assignment]

        answer = client.post(path, input_stream=Broken(b"x" * 100), content_type=media)
        assert (answer.status_code, answer.get_json()["code"]) == (400, code)
        assert SECRET not in answer.get_data(as_text=True)
