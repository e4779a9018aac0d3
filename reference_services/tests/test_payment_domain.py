"""Rules of money, of a payment's life and of who decides on it; the store held to a model of them."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from itertools import product

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from reference_services.payment_gateway import domain, lifecycle, money, store
from reference_services.payment_gateway.cards import Card
from reference_services.payment_gateway.domain import APPROVAL_SECONDS, ApprovalError, Pending
from reference_services.payment_gateway.lifecycle import TRANSITIONS, Event, Status, TransitionError
from reference_services.payment_gateway.money import CURRENCIES, MAX_MINOR, MoneyError

currencies = st.sampled_from(sorted(CURRENCIES))
amounts = st.integers(1, MAX_MINOR)


class TestMoney:
    """Minor units and decimal texts (ISO 4217)."""

    @given(currencies, st.integers(0, MAX_MINOR))
    def test_there_and_back(self, currency: str, minor: int) -> None:
        """A text made of minor units is read as the same, and is the exact decimal value."""
        text = money.to_decimal(minor, currency)
        assert money.to_minor(text, currency) == minor
        assert Decimal(text) == Decimal(minor).scaleb(-CURRENCIES[currency][0])

    @pytest.mark.parametrize(
        ("text", "currency", "minor"),
        [
            ("150.00", "USD", 15_000),
            ("150", "USD", 15_000),
            ("0.5", "USD", 50),
            ("150", "JPY", 150),
            ("1.005", "KWD", 1005),
        ],
    )
    def test_exponents(self, text: str, currency: str, minor: int) -> None:
        """The yen has no decimals, the dinar three."""
        assert money.to_minor(text, currency) == minor

    @pytest.mark.parametrize(
        ("text", "currency"),
        [
            *(
                ("1.005", "USD"),
                ("150.0", "JPY"),
                ("1.0000", "KWD"),
                ("-1", "USD"),
                ("+1", "USD"),
                ("1e2", "USD"),
            ),
            *(
                ("", "USD"),
                (".5", "USD"),
                ("1.", "USD"),
                ("01", "USD"),
                ("NaN", "USD"),
                ("1,5", "USD"),
                ("\uff11", "USD"),
            ),
        ],
    )
    def test_refused_texts(self, text: str, currency: str) -> None:
        """Nothing is rounded, and only plain decimal numbers are read."""
        with pytest.raises(MoneyError) as caught:
            money.to_minor(text, currency)
        assert caught.value.code == "amount_not_representable"

    @given(amounts, currencies)
    def test_both_forms(self, minor: int, currency: str) -> None:
        """Either form will do; both must agree."""
        text = money.to_decimal(minor, currency)
        assert {
            money.amount_of(stated, written, currency)
            for stated, written in ((minor, None), (None, text), (minor, text))
        } == {minor}
        with pytest.raises(MoneyError, match="amounts_differ"):
            money.amount_of(minor + 1, text, currency)

    @pytest.mark.parametrize(
        ("minor", "text", "currency", "code"),
        [
            (None, None, "USD", "amount_missing"),
            (0, None, "USD", "amount_out_of_range"),
            (MAX_MINOR + 1, None, "USD", "amount_out_of_range"),
            (None, "0.00", "USD", "amount_out_of_range"),
            (100, None, "XXX", "currency_not_supported"),
            (None, "1", "XXX", "currency_not_supported"),
        ],
    )
    def test_refused_amounts(self, minor: int | None, text: str | None, currency: str, code: str) -> None:
        """No amount, nothing, too much, or a currency that is not taken."""
        with pytest.raises(MoneyError) as caught:
            money.amount_of(minor, text, currency)
        assert caught.value.code == code


class TestApprovalsRequired:
    """Amount -> number of approvals."""

    @pytest.mark.parametrize("currency", CURRENCIES)
    def test_thresholds(self, currency: str) -> None:
        """One from the first threshold on, two from ten times it."""
        first = CURRENCIES[currency][1] * 10 ** CURRENCIES[currency][0]
        found = [
            domain.approvals_required(first * times - less, currency) for times in (1, 10) for less in (1, 0)
        ]
        assert found == [0, 1, 1, 2]

    def test_dollars(self) -> None:
        """$10,000 and $100,000."""
        assert [
            domain.approvals_required(cents, "USD") for cents in (999_999, 1_000_000, 9_999_999, 10_000_000)
        ] == [0, 1, 1, 2]

    @given(amounts, amounts, currencies)
    def test_more_never_needs_fewer(self, one: int, other: int, currency: str) -> None:
        """Monotonic in the amount."""
        low, high = sorted((one, other))
        assert domain.approvals_required(low, currency) <= domain.approvals_required(high, currency)


class TestAdvance:
    """The transition table, in full."""

    @pytest.mark.parametrize(("status", "event"), list(product(Status, Event)))
    def test_exactly_the_table(self, status: Status, event: Event) -> None:
        """What the table has happens; everything else is refused with the current status as code."""
        if (status, event) in TRANSITIONS:
            assert lifecycle.advance(status, event) is TRANSITIONS[status, event]
        else:
            with pytest.raises(TransitionError) as caught:
                lifecycle.advance(status, event)
            assert caught.value.code == status.value

    def test_its_shape(self) -> None:
        """Every status is reachable, nothing leads back to the start, and the ends are ends."""
        reached = {Status.CREATED}
        while new := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
            reached |= new
        assert reached == set(Status)
        assert Status.CREATED not in TRANSITIONS.values()
        ends = set(Status) - {before for before, _ in TRANSITIONS}
        assert ends == {Status.CAPTURED, Status.DECLINED, Status.REJECTED, Status.EXPIRED, Status.VOIDED}

    def test_money_only_moves_after_authorisation(self) -> None:
        """Capture has one way in."""
        assert [before for (before, event) in TRANSITIONS if event is Event.CAPTURE] == [Status.AUTHORIZED]


def pending(**changes: object) -> Pending:
    values: dict[str, object] = {
        "status": Status.REQUIRES_APPROVAL, "initiator": "maker", "required": 1, "approvers": frozenset(), "age_seconds": 0.0,
    }  # fmt: skip
    return Pending(**{**values, **changes})  # type: ignore[arg-type]


class TestDecide:
    """Who may decide, and what follows."""

    def decide(self, by: str, *, approve: bool = True, **changes: object) -> Event | None:
        """Decide on a payment that would be authorised."""
        return domain.decide(pending(**changes), by, approve=approve, outcome_event=Event.AUTHORIZE)

    def test_one_of_one(self) -> None:
        """The last approval lets the processor's answer happen."""
        assert self.decide("checker") is Event.AUTHORIZE
        assert domain.decide(pending(), "checker", approve=True, outcome_event=Event.DECLINE) is Event.DECLINE

    def test_one_of_two(self) -> None:
        """Nothing happens yet; the second makes it happen."""
        assert self.decide("checker", required=2) is None
        assert self.decide("other", required=2, approvers=frozenset({"checker"})) is Event.AUTHORIZE

    def test_rejection(self) -> None:
        """One rejection ends it."""
        assert self.decide("checker", approve=False, required=2) is Event.REJECT

    @pytest.mark.parametrize("approve", [True, False])
    @pytest.mark.parametrize("age", [0.0, APPROVAL_SECONDS + 1.0])
    def test_never_ones_own(self, approve: bool, age: float) -> None:
        """The initiator neither approves nor rejects, late or not."""
        with pytest.raises(ApprovalError, match="self_approval"):
            self.decide("maker", approve=approve, age_seconds=age)

    def test_not_twice(self) -> None:
        """Two approvals are of two persons."""
        with pytest.raises(ApprovalError, match="already_decided"):
            self.decide("checker", required=2, approvers=frozenset({"checker"}))

    def test_too_late(self) -> None:
        """After a day the payment expires instead; at the limit it does not."""
        assert self.decide("checker", age_seconds=APPROVAL_SECONDS + 1.0) is Event.EXPIRE
        assert self.decide("checker", age_seconds=float(APPROVAL_SECONDS)) is Event.AUTHORIZE

    def test_status_in_time(self) -> None:
        """Only what awaits a decision expires by time."""
        late = {status: domain.status_at(APPROVAL_SECONDS + 1.0, status) for status in Status}
        assert {status: found for status, found in late.items() if found is not status} == {
            Status.REQUIRES_APPROVAL: Status.EXPIRED
        }
        in_time = domain.status_at(float(APPROVAL_SECONDS), Status.REQUIRES_APPROVAL)
        assert in_time is Status.REQUIRES_APPROVAL

    @pytest.mark.parametrize(
        "status", [status for status in Status if status is not Status.REQUIRES_APPROVAL]
    )
    def test_only_what_waits(self, status: Status) -> None:
        """There is nothing to decide elsewhere."""
        with pytest.raises(TransitionError):
            self.decide("checker", status=status)


class TestComplianceType:
    """The metric label."""

    @pytest.mark.parametrize(
        ("arguments", "label"),
        [
            ((1, True, True), "sox"),
            ((0, True, True), "fda"),
            ((0, True, False), "hipaa"),
            ((0, False, False), "pci"),
        ],
    )
    def test_the_strictest_wins(self, arguments: tuple[int, bool, bool], label: str) -> None:
        """SOX before FDA before HIPAA before PCI."""
        assert domain.compliance_type(*arguments) == label


class Payments(RuleBasedStateMachine):
    """The store under any sequence of payments and decisions, against a model in a dictionary."""

    made = Bundle("made")
    people = st.sampled_from(["ann", "bob", "cyd"])

    def __init__(self) -> None:
        super().__init__()
        self.engine = sa.create_engine("sqlite://")
        self.connection = self.engine.connect()
        store.METADATA.create_all(self.connection)
        store.add_token(self.connection, "tok", Card("f", "visa", "4242", 12, 2030, "approved"))
        self.model: dict[str, tuple[Status, str, int, dict[str, str]]] = {}

    @rule(target=made, who=people, amount=st.sampled_from([1, 999_999, 1_000_000, 9_999_999, 10_000_000]))
    def pay(self, who: str, amount: int) -> str:
        """Make a payment."""
        key, required = f"pay_{len(self.model)}", domain.approvals_required(amount, "USD")
        store.add_payment(
            self.connection, id=key, amount=amount, currency="USD", capture=True, token_id="tok", initiator=who,
            required=required, created_ns=0,
        )  # fmt: skip
        status = store.happen(
            self.connection, key, Status.CREATED, Event.HOLD if required else Event.AUTHORIZE
        )
        self.model[key] = (status, who, required, {})
        return key

    @rule(key=made, who=people, approve=st.booleans())
    def decide(self, key: str, who: str, approve: bool) -> None:
        """Decide on a payment, permitted or not."""
        row = store.payment(self.connection, key, lock=True)
        assert row is not None
        status, initiator, required, decided = self.model[key]
        state = Pending(
            Status(row["status"]), row["initiator"], row["required"],
            frozenset(made["approver"] for made in store.decisions(self.connection, key)), 0.0,
        )  # fmt: skip
        permitted = status is Status.REQUIRES_APPROVAL and who != initiator and who not in decided
        try:
            event = domain.decide(state, who, approve=approve, outcome_event=Event.AUTHORIZE)
        except domain.DomainError:
            assert not permitted
            return
        assert permitted
        store.add_decision(self.connection, key, who, "approve" if approve else "reject", "why", len(decided))
        decided = {**decided, who: "approve" if approve else "reject"}
        if event is not None:
            status = store.happen(self.connection, key, status, event)
        expected = (
            Status.REJECTED
            if not approve
            else Status.AUTHORIZED
            if len(decided) >= required
            else Status.REQUIRES_APPROVAL
        )
        assert status is expected
        self.model[key] = (status, initiator, required, decided)

    @rule(key=made)
    def capture(self, key: str) -> None:
        """Capture a payment, permitted or not."""
        status, *rest = self.model[key]
        try:
            after = store.happen(self.connection, key, status, Event.CAPTURE)
        except TransitionError:
            assert status is not Status.AUTHORIZED
            return
        self.model[key] = (after, *rest)  # type: ignore[assignment]

    @rule(key=made, stale=st.sampled_from(list(Status)), event=st.sampled_from(list(Event)))
    def stale_event(self, key: str, stale: Status, event: Event) -> None:
        """A step from a status that the payment is not in changes nothing."""
        if stale is not self.model[key][0]:
            with pytest.raises((TransitionError, LookupError)):
                store.happen(self.connection, key, stale, event)

    @invariant()
    def holds(self) -> None:
        """Status, pending count, ledger and both controls agree with the model."""
        rows = {key: store.payment(self.connection, key) for key in self.model}
        assert {key: row["status"] for key, row in rows.items() if row} == {
            key: m[0].value for key, m in self.model.items()
        }
        assert store.pending(self.connection, 0) == sum(
            m[0] is Status.REQUIRES_APPROVAL for m in self.model.values()
        )
        captured = {key for key, m in self.model.items() if m[0] is Status.CAPTURED}
        assert set(self.connection.execute(sa.select(store.LEDGER.c.payment_id)).scalars()) == captured
        assert store.unbalanced(self.connection) == 0
        assert store.self_approved(self.connection)[1] == 0
        assert store.under_approved(self.connection)[1] == 0

    def teardown(self) -> None:
        """Close the database."""
        self.connection.close()
        self.engine.dispose()


TestPayments = Payments.TestCase
TestPayments.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class TestControlsSeeFaults:
    """The queries behind the controls find what they are there to find."""

    @pytest.fixture
    def connection(self) -> Iterator[sa.Connection]:
        """A database with three payments that were let through."""
        engine = sa.create_engine("sqlite://")
        with engine.connect() as connection:
            store.METADATA.create_all(connection)
            store.add_token(connection, "tok", Card("f", "visa", "4242", 12, 2030, "approved"))
            for key, amount in (("small", 999_999), ("large", 1_000_000), ("huge", 10_000_000)):
                store.add_payment(
                    connection, id=key, amount=amount, currency="USD", capture=True, token_id="tok", initiator="maker",
                    required=0, created_ns=0,
                )  # fmt: skip
                store.happen(connection, key, Status.CREATED, Event.AUTHORIZE)
            yield connection
        engine.dispose()

    def test_missing_approvers(self, connection: sa.Connection) -> None:
        """Payments over a threshold without enough distinct others are counted, whatever the row says is required."""
        assert store.under_approved(connection) == (2, 2)
        store.add_decision(connection, "large", "checker", "approve", "ok", 1)
        store.add_decision(connection, "huge", "checker", "approve", "ok", 1)
        assert store.under_approved(connection) == (2, 1)
        store.add_decision(connection, "huge", "maker", "approve", "ok", 2)
        assert store.under_approved(connection) == (2, 1)
        store.add_decision(connection, "huge", "third", "reject", "no", 3)
        assert store.under_approved(connection) == (2, 1)
        store.add_decision(connection, "huge", "fourth", "approve", "ok", 4)
        assert store.under_approved(connection) == (2, 0)

    def test_own_approval(self, connection: sa.Connection) -> None:
        """A row in which initiator and approver are one is counted."""
        store.add_decision(connection, "large", "checker", "approve", "ok", 1)
        assert store.self_approved(connection) == (1, 0)
        store.add_decision(connection, "huge", "maker", "approve", "ok", 1)
        assert store.self_approved(connection) == (2, 1)

    def test_unbalanced_ledger(self, connection: sa.Connection) -> None:
        """One changed entry is enough."""
        store.happen(connection, "small", Status.AUTHORIZED, Event.CAPTURE)
        assert store.unbalanced(connection) == 0
        connection.execute(store.LEDGER.update().where(store.LEDGER.c.account == "revenue").values(minor=-1))
        assert store.unbalanced(connection) == 1

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM ledger",
            "DELETE FROM ledger WHERE account = 'revenue'",
            "UPDATE payment SET amount = 1",
            "UPDATE payment SET currency = 'EUR'",
            "UPDATE payment SET status = 'authorized'",
            "DELETE FROM payment",
            "UPDATE ledger SET minor = -minor",
            "UPDATE ledger SET account = 'receivable:other' WHERE account = 'receivable:processor'",
            "INSERT INTO ledger VALUES ('small', 'fees', 'USD', 0)",
            "INSERT INTO ledger VALUES ('large', 'receivable:processor', 'USD', 5), ('large', 'revenue', 'USD', -5)",
        ],
    )
    def test_ledger_of_other_payments(self, connection: sa.Connection, statement: str) -> None:
        """The ledger is the double entry of each captured payment, in its amount and currency, and nothing else."""
        store.happen(connection, "small", Status.AUTHORIZED, Event.CAPTURE)
        connection.exec_driver_sql(statement)
        assert store.unbalanced(connection) == 1

    def test_payments_that_are_not_as_audited(self, connection: sa.Connection) -> None:
        """Of captures that somebody else knows, those are counted that are gone, or have another amount or currency."""
        store.happen(connection, "small", Status.AUTHORIZED, Event.CAPTURE)
        known = {"small": (999_999, "USD")}
        assert store.captured_otherwise(connection, {}) == 0
        assert store.captured_otherwise(connection, known) == 0
        assert (
            store.captured_otherwise(connection, known | {"large": (1_000_000, "USD"), "gone": (1, "USD")})
            == 2
        )
        assert store.captured_otherwise(connection, {"small": (1, "USD")}) == 1
        assert store.captured_otherwise(connection, {"small": (999_999, "EUR")}) == 1
