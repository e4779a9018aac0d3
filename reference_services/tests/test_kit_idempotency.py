"""Idempotency-Key: one effect and one answer, whatever happens in between."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from healthobs.clock import Clock
from reference_services._kit import Model, Problem, idempotency
from reference_services._kit.idempotency import ANSWERS, KEEP_NS, Idempotency, read_key
from reference_services._kit.keys import load_secret

METADATA = sa.MetaData()
PAYMENTS = sa.Table(
    "payments", METADATA, sa.Column("id", sa.Integer, primary_key=True), sa.Column("amount", sa.Integer)
)
URL = "/payments"


class Payment(Model):
    """A request."""

    amount: int
    note: str = ""


class Paid(Model):
    """Its answer."""

    id: int
    note: str


def add_routes(bench: Any) -> None:
    kit = bench.kit
    kit.migrate(METADATA)

    @kit.post("/payments", body=Payment, returns={201: Paid, 402: None}, summary="Pay", idempotent=True)
    def pay(body: Payment) -> Any:
        with kit.transaction() as connection:
            made = connection.execute(
                PAYMENTS.insert().values(amount=body.amount).returning(PAYMENTS.c.id)
            ).scalar_one()
        if body.amount == 402:
            return {"declined": True}, 402
        if body.amount == 409:
            raise Problem(409, "busy", "Busy.")
        if body.amount == 500:
            raise RuntimeError("planted")
        return Paid(id=made, note=body.note), 201, {"Location": f"/payments/{made}"}

    @kit.post("/refunds", body=Payment, returns={201: Paid}, summary="Refund", idempotent=True)
    def refund(body: Payment) -> Any:
        return Paid(id=body.amount, note="refund"), 201


@pytest.fixture
def client(bench: Any) -> Any:
    add_routes(bench)
    return bench.client()


def pay(client: Any, amount: int, key: str | None = "k1", url: str = URL, **more: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(url, json={"amount": amount, **more}, headers=headers)


def stored(bench: Any) -> int:
    with bench.kit.reading() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(PAYMENTS)).scalar_one()


class TestKeys:
    """The header."""

    @pytest.mark.parametrize(
        ("header", "key"),
        [
            ("abc", "abc"),
            ('"abc"', "abc"),
            (' "a b" ', "a b"),
            ("x" * 255, "x" * 255),
            ('"' + "x" * 255 + '"', "x" * 255),
        ],
    )
    def test_quoted_or_bare(self, header: str, key: str) -> None:
        """The draft's quoted string and the bare form name the same key."""
        assert read_key(header) == key

    @pytest.mark.parametrize(
        "header", ["", '""', '"', "x" * 256, '"' + "x" * 256 + '"', "a b", 'a"b', "é", "a\x00"]
    )
    def test_refused(self, header: str) -> None:
        """Empty, over-long and non-ASCII keys are 400."""
        with pytest.raises(Problem) as raised:
            read_key(header)
        assert (raised.value.status, raised.value.code) == (400, "idempotency_key_invalid")

    def test_missing(self, client: Any) -> None:
        """Without the header the request is 400 and has no effect."""
        answer = pay(client, 5, key=None)
        assert (answer.status_code, answer.get_json()["code"]) == (400, "idempotency_key_missing")


class TestReplay:
    """The second request with a key."""

    def test_one_effect_and_the_same_answer(self, client: Any, bench: Any) -> None:
        """The second request gets the first one's status, body and Location, marked as replayed."""
        first, second = pay(client, 5), pay(client, 5, key='"k1"')
        assert first.status_code == second.status_code == 201
        assert first.data == second.data
        assert second.headers["Location"] == first.headers["Location"] == "/payments/1"
        assert "Idempotent-Replayed" not in first.headers
        assert second.headers["Idempotent-Replayed"] == "true"
        assert stored(bench) == 1
        assert b'bench_idempotent_replays_total{endpoint="/payments"} 1.0' in client.get("/metrics").data

    def test_member_order_and_spaces_do_not_matter(self, client: Any) -> None:
        """Equal JSON is an equal request."""
        headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
        client.post(URL, data='{"amount": 5, "note": "a"}', headers=headers)
        again = client.post(URL, data='{"note":"a","amount":5}', headers=headers)
        assert again.headers["Idempotent-Replayed"] == "true"

    def test_another_body(self, client: Any, bench: Any) -> None:
        """The key with another body is 422 and has no effect."""
        pay(client, 5)
        answer = pay(client, 6)
        assert (answer.status_code, answer.get_json()["code"]) == (422, "idempotency_key_reused")
        assert stored(bench) == 1

    def test_members_that_are_not_remembered(self, bench: Any) -> None:
        """Of such a member its stand-in decides whether a request is the same, or nothing does."""
        kit = bench.kit
        kit.migrate(METADATA)
        kit.post(
            "/payments", body=Payment, returns={201: Paid}, summary="Pay", idempotent=True,
            remembered={"amount": lambda amount: amount % 10, "note": None},
        )(lambda body: Paid(id=body.amount, note=body.note))  # fmt: skip
        client = bench.client()
        first = pay(client, 5, note="a")
        assert pay(client, 15, note="b").data == pay(client, 5).data == first.data
        assert pay(client, 6, note="a").get_json()["code"] == "idempotency_key_reused"

    def test_only_members_of_the_body_have_a_stand_in(self, bench: Any) -> None:
        """A name that the body does not have is a slip that would let a secret through: it stops the start."""
        with pytest.raises(
            TypeError, match="remembered= of POST /payments names what the body does not have"
        ):
            bench.kit.post("/payments", body=Payment, returns={}, summary="x", remembered={"amont": None})(
                pay
            )
        with pytest.raises(TypeError):
            bench.kit.post("/payments", returns={}, summary="x", remembered={"amount": None})(pay)

    def test_another_route(self, client: Any) -> None:
        """Keys of different routes do not meet."""
        pay(client, 5)
        assert pay(client, 5, url="/refunds").get_json() == {"id": 5, "note": "refund"}

    def test_another_client(self, bench: Any) -> None:
        """Keys of different clients, and of different routes, have different slots."""
        memory = Idempotency(bytes(32), Clock())
        slots = {
            memory.slot(*parts)
            for parts in (("a", "r", "k"), ("b", "r", "k"), ("a", "s", "k"), ("a", "rk", ""))
        }
        assert len(slots) == 4

    def test_a_returned_error_is_remembered(self, client: Any, bench: Any) -> None:
        """An error that the view returns is an answer like any other."""
        assert pay(client, 402).status_code == 402
        again = pay(client, 402)
        assert (again.status_code, again.headers["Idempotent-Replayed"]) == (402, "true")
        assert stored(bench) == 1

    @pytest.mark.parametrize("amount", [409, 500])
    def test_a_raised_error_leaves_nothing(self, client: Any, bench: Any, amount: int) -> None:
        """What the view raises rolls the write back, and the key may be used again."""
        assert pay(client, amount).status_code == amount
        assert stored(bench) == 0
        again = pay(client, amount)
        assert again.status_code == amount
        assert "Idempotent-Replayed" not in again.headers

    def test_an_invalid_request_is_not_remembered(self, client: Any) -> None:
        """After a 422 the same key works with a corrected body."""
        assert client.post(URL, json={"amount": "5"}, headers={"Idempotency-Key": "k1"}).status_code == 422
        assert pay(client, 5).status_code == 201

    def test_after_a_day_the_key_is_new(self, client: Any, bench: Any) -> None:
        """An answer is forgotten after 24 hours, not before."""
        pay(client, 5)
        now = bench.kit.clock.wall_ns()
        memory = bench.kit._idempotency
        memory._clock = replace(memory._clock, wall_ns=lambda: now + KEEP_NS - 60_000_000_000)
        assert pay(client, 5).headers["Idempotent-Replayed"] == "true"
        memory._clock = replace(memory._clock, wall_ns=lambda: now + KEEP_NS + 60_000_000_000)
        assert "Idempotent-Replayed" not in pay(client, 5).headers
        assert stored(bench) == 2

    def test_the_answer_survives_a_restart(self, make_bench: Any) -> None:
        """A new process with the same data folder replays."""
        first, second = make_bench("same"), make_bench("same")
        add_routes(first)
        add_routes(second)
        pay(first.client(), 5)
        assert pay(second.client(), 5).headers["Idempotent-Replayed"] == "true"


class TestBefore:
    """`before=`: what is called ahead of the transaction."""

    @pytest.fixture
    def asked(self, bench: Any) -> list[tuple[int, bool]]:
        """Add routes with a hook; give what each call of it saw: the amount, and whether it could write alone."""
        kit, seen = bench.kit, list[tuple[int, bool]]()
        kit.migrate(METADATA)

        def ask(body: Payment) -> None:
            with kit.engine.begin() as other:  # raises when the route's own transaction holds the lock
                alone = bool(other.execute(PAYMENTS.insert().values(amount=0)).rowcount)
            seen.append((body.amount, alone))
            if body.amount == 503:
                raise Problem(503, "away", "Away.")

        def take(body: Payment) -> Any:
            with kit.transaction() as connection:
                connection.execute(PAYMENTS.insert().values(amount=body.amount))
            return Paid(id=body.amount, note=""), 201

        kit.post("/once", body=Payment, returns={201: Paid}, summary="x", idempotent=True, before=ask)(take)
        kit.post("/plain", body=Payment, returns={201: Paid}, summary="x", before=ask)(take)
        return seen

    @pytest.mark.parametrize("url", ["/once", "/plain"])
    def test_it_runs_outside_of_the_transaction(self, asked: Any, bench: Any, url: str) -> None:
        """The hook has the view's arguments and no transaction is open around it."""
        assert pay(bench.client(), 5, url=url).status_code == 201
        assert asked == [(5, True)]

    def test_a_replay_does_not_ask_again(self, asked: Any, bench: Any) -> None:
        """A remembered answer is given without the hook; a key used for another request is refused without it."""
        client = bench.client()
        pay(client, 5, url="/once")
        assert pay(client, 5, url="/once").headers["Idempotent-Replayed"] == "true"
        assert pay(client, 6, url="/once").status_code == 422
        assert asked == [(5, True)]

    def test_its_refusal_is_not_remembered(self, asked: Any, bench: Any) -> None:
        """What the hook refuses reaches no view, and the same key asks again."""
        client = bench.client()
        assert [pay(client, 503, url="/once").status_code for _ in range(2)] == [503, 503]
        assert asked == [(503, True)] * 2
        with bench.kit.reading() as connection:
            assert connection.execute(sa.select(PAYMENTS.c.amount)).scalars().all() == [0, 0]

    def test_an_invalid_request_does_not_reach_it(self, asked: Any, bench: Any) -> None:
        """Body and key are checked first."""
        client = bench.client()
        assert client.post("/once", json={}, headers={"Idempotency-Key": "k"}).status_code == 422
        assert pay(client, 5, url="/once", key=None).status_code == 400
        assert asked == []

    def test_an_answer_that_expires_meanwhile(self, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the answer is forgotten between the look and the transaction, the hook is not left out."""
        monkeypatch.setattr(Idempotency, "knows", lambda *_: True)
        bench.kit.migrate(METADATA)
        calls: list[int] = []
        bench.kit.post(
            "/late", body=Payment, returns={201: Paid}, summary="x", idempotent=True,
            before=lambda body: calls.append(body.amount),
        )(lambda body: (Paid(id=body.amount, note=""), 201))  # fmt: skip
        assert pay(bench.client(), 5, url="/late").status_code == 201
        assert calls == [5]

    def test_it_asks_for_what_the_view_has(self, bench: Any) -> None:
        """A hook that names more than the view is refused where it is registered."""
        with pytest.raises(TypeError, match="asks for more than the view"):
            bench.kit.get("/x", returns={200: None}, summary="x", before=lambda principal: principal)(
                lambda: None
            )


class TestStorage:
    """What is kept, and how."""

    def test_nothing_readable_is_stored(self, client: Any, bench: Any) -> None:
        """Key, body and answer are nowhere in the database file."""
        pay(client, 5, key="mrn-12345678", note="Jane Roe")
        with bench.kit.reading() as connection:
            row = connection.execute(sa.select(ANSWERS)).one()
        assert b"Jane Roe" not in row.answer
        raw = b"".join(path.read_bytes() for path in Path(bench.settings.data_dir).glob("bench.db*"))
        assert len(raw) > 0
        assert b"12345678" not in raw
        assert b"Jane Roe" not in raw

    def test_the_secret_is_private_and_stable(self, tmp_path: Path) -> None:
        """The key file is made once, for its owner only."""
        path = tmp_path / "new" / "secret.key"
        secret = load_secret(path)
        assert len(secret) == 32
        assert path.stat().st_mode & 0o777 == 0o600
        assert load_secret(path) == secret
        assert list(path.parent.iterdir()) == [path]

    def test_a_damaged_secret_is_refused(self, tmp_path: Path) -> None:
        """A short key file stops the service instead of weakening it."""
        path = tmp_path / "secret.key"
        path.write_text("00")
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            load_secret(path)

    def test_many_starts_at_once_agree(self, tmp_path: Path) -> None:
        """Threads that make the file together all read the same secret."""
        with ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _: load_secret(tmp_path / "secret.key"), range(16)))
        assert len(found) == 1


class TestConcurrency:
    """Equal requests at the same time."""

    def test_in_flight(self) -> None:
        """While a request is being answered, the same key is 409; afterwards it is free."""
        memory = Idempotency(bytes(32), Clock())
        with memory.exclusive("slot"), pytest.raises(Problem) as raised, memory.exclusive("slot"):
            pass
        assert (raised.value.status, raised.value.headers) == (409, {"Retry-After": "1"})
        with memory.exclusive("slot"):
            pass

    def test_taken_away_meanwhile(self, client: Any, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer that another request takes away, a day old, between two statements of this one leaves a new key."""
        add, tried = idempotency.add_new, list[bool]()

        def gone(*arguments: Any, **values: Any) -> bool:
            tried.append(bool(tried) and add(*arguments, **values))
            return tried[-1]

        monkeypatch.setattr(idempotency, "add_new", gone)
        answer = pay(client, 5)
        assert (answer.status_code, "Idempotent-Replayed" in answer.headers) == (201, False)
        assert tried == [False, True]

    def test_two_processes_one_effect(self, make_bench: Any) -> None:
        """Two services on one database, called together with equal keys, make one payment per key."""
        clients = []
        for _ in range(2):
            made = make_bench("same")
            add_routes(made)
            clients.append(made.client().application)
        start = threading.Barrier(4)

        def work(number: int) -> list[tuple[str, int, bytes]]:
            start.wait()
            client = clients[number % 2].test_client()
            return [
                (key, (answer := pay(client, 5, key=key)).status_code, answer.data)
                for key in map(str, range(10))
            ]

        with ThreadPoolExecutor(4) as pool:
            results = [item for batch in pool.map(work, range(4)) for item in batch]
        assert {status for _, status, _ in results} <= {201, 409}
        bodies = {(key, body) for key, status, body in results if status == 201}
        assert len(bodies) == 10
        assert stored(made) == 10
