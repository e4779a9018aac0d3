"""What payment-gateway observes about itself, and what makes each control fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.another_writer import another_writer

from healthobs.compliance import ProbeContext
from payment_bench import Gateway
from reference_services._kit import ServiceSettings
from reference_services._kit import controls as kit_controls
from reference_services.payment_gateway import cards, domain, store
from reference_services.payment_gateway.api import INFO, create_app
from reference_services.payment_gateway.controls import CANARY, _files, controls


class TestControls:
    """The service's own controls pass on a sound service and fail on each sabotage from outside."""

    @pytest.fixture
    def run(self, gateway: Gateway) -> Callable[[str], tuple[str, int | None]]:
        """Run one control and return its state and how much it looked at."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]
        obs = gateway.world.obs("payment-gateway")
        context = ProbeContext(settings=obs.settings, clock=obs.clock, redactor=obs.redactor, audit=obs.audit)
        made = {control.id: control for control in controls(lambda: service)}

        def once(name: str) -> tuple[str, int | None]:
            probe = made[name].probe
            assert probe is not None
            outcome = probe(context)
            return outcome.state, outcome.n

        return once

    def test_sound(self, gateway: Gateway, run: Any) -> None:
        """All pass; what they count is there; the canary is not kept."""
        gateway.decide(gateway.held(), "approver")
        gateway.post("/charge", gateway.bill(100))
        assert [run(name) for name in ("S-sod", "S-dual")] == [("pass", 1), ("pass", 1)]
        assert run("C-3.5.db")[0] == "pass"
        assert len(gateway.database("SELECT * FROM token")) == 2

    def test_the_search_of_files_lets_no_second_writer_in(self, gateway: Gateway) -> None:
        """The service's own connections hold locks by the process: to close a file of theirs would drop them."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]
        with service.kit.transaction():
            assert len(list(_files(service))) > 2
            assert another_writer(Path(service.kit.engine.url.database)) == "database is locked"

    def test_empty(self, run: Any) -> None:
        """Nothing stored is nothing wrong."""
        assert [run(name)[0] for name in ("S-sod", "S-dual", "C-3.5.db")] == ["pass"] * 3

    @pytest.mark.parametrize(
        ("statement", "control"),
        [
            ("UPDATE approval SET approver = 'billing'", "S-sod"),
            ("UPDATE payment SET initiator = 'approver'", "S-sod"),
            ("DELETE FROM approval", "S-dual"),
            ("UPDATE payment SET amount = 10000000", "S-dual"),
            ("UPDATE approval SET decision = 'reject'", "S-dual"),
            ("DELETE FROM ledger", "S-dual"),
            ("UPDATE payment SET amount = 1", "S-dual"),
            ("UPDATE token SET brand = '4242424242424242'", "C-3.5.db"),
        ],
    )
    def test_sabotaged_database(self, gateway: Gateway, run: Any, statement: str, control: str) -> None:
        """A row changed by hand is found by its control."""
        gateway.decide(gateway.held(), "approver")
        gateway.database(statement)
        assert run(control)[0] == "fail"

    @pytest.mark.parametrize(
        "statements",
        [
            ("DELETE FROM ledger", "DELETE FROM approval", "DELETE FROM payment"),
            (
                "UPDATE payment SET amount = 1",
                "UPDATE ledger SET minor = CASE WHEN minor < 0 THEN -1 ELSE 1 END",
            ),
        ],
    )
    def test_nothing_left_of_it(self, gateway: Gateway, run: Any, statements: tuple[str, ...]) -> None:
        """A payment that was destroyed, or made smaller in all places, is missed: the audit trail tells of it."""
        gateway.decide(gateway.held(), "approver")
        assert run("S-dual") == ("pass", 1)
        for statement in statements:
            gateway.database(statement)
        assert run("S-dual") == ("fail", 1)

    def test_captured_later(self, gateway: Gateway, run: Any) -> None:
        """A payment that was authorised first is missed like any other."""
        payment = gateway.post("/process", gateway.bill(100, capture=False)).get_json()["id"]
        headers = {**gateway.headers("billing"), "Idempotency-Key": "k"}
        assert gateway.client.post(f"/payments/{payment}/capture", headers=headers).status_code == 200
        assert run("S-dual") == ("pass", 0)
        for table in ("ledger", "payment"):
            gateway.database(f"DELETE FROM {table}")
        assert run("S-dual") == ("fail", 1)

    def test_only_the_one_concerned(self, gateway: Gateway, run: Any) -> None:
        """A card number in the database says nothing about approvals."""
        gateway.decide(gateway.held(), "approver")
        gateway.database("UPDATE token SET brand = '4242424242424242'")
        assert [run(name)[0] for name in ("S-sod", "S-dual", "C-3.5.db")] == ["pass", "pass", "fail"]

    @pytest.mark.parametrize("form", range(8))
    def test_file(self, gateway: Gateway, run: Any, form: int) -> None:
        """The canary in any file of the service, in any form, is found."""
        (gateway.folder / "core.dump").write_bytes(b"\0\xff" + cards.written_forms(CANARY)[form] + b"\0")
        assert run("C-3.5.db")[0] == "fail"

    def test_file_in_a_folder(self, gateway: Gateway, run: Any) -> None:
        """A file below the folder is one of the service's too."""
        (gateway.folder / "dumps" / "old").mkdir(parents=True)
        assert run("C-3.5.db")[0] == "pass"
        (gateway.folder / "dumps" / "old" / "core").write_bytes(b"\0" + CANARY.encode() + b"\0")
        assert run("C-3.5.db")[0] == "fail"

    def test_file_that_goes_meanwhile(
        self, gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that is gone before it is read, as a draft or journal is, leaves the others to be searched."""
        read = kit_controls.read_raw

        def late(path: Path, most_bytes: int) -> bytes:
            if path.name == "draft":
                path.unlink()
            return read(path, most_bytes)

        monkeypatch.setattr(kit_controls, "read_raw", late)
        (gateway.folder / "draft").write_bytes(b"x")
        assert run("C-3.5.db")[0] == "pass"
        (gateway.folder / "draft").write_bytes(b"x")
        (gateway.folder / "left").write_bytes(CANARY.encode())
        assert run("C-3.5.db")[0] == "fail"

    def test_rule_switched_off(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rule that lets everything through is found before anything is stored by it."""
        monkeypatch.setattr(domain, "check_separation", lambda *_: None)
        assert run("S-sod") == ("fail", 0)
        monkeypatch.setattr(domain, "approvals_required", lambda *_: 0)
        assert run("S-dual") == ("fail", 0)

    def test_number_kept(self, gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service that keeps the number is found by the canary alone."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]

        def keep(connection: Any, token_id: str, number: str, *rest: Any) -> None:
            card = cards.read_card(number, *rest, key=b"k" * 32, now=(2026, 1))
            store.add_token(connection, token_id, dataclasses.replace(card, fingerprint=number))

        monkeypatch.setattr(service, "keep", keep)
        assert run("C-3.5.db")[0] == "fail"

    def test_they_are_observed(self, tmp_path: Path) -> None:
        """Started on its own the service shows them beside the library's."""
        environ = {"HEALTHOBS_DATA_DIR": str(tmp_path / "own"), "HEALTHOBS_CAPTURE_STDLIB": "false"}
        app = create_app(
            ServiceSettings.from_env(INFO, {**environ, "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0"})
        )
        kit = app.extensions["reference_services"]
        try:
            engine = kit.obs.controls
            assert engine is not None
            assert engine.run(["S-sod", "S-dual", "C-3.5.db"]) == {
                "S-sod": "pass",
                "S-dual": "pass",
                "C-3.5.db": "pass",
            }
        finally:
            kit.close()
