"""No card number and no security code stays anywhere."""

from __future__ import annotations

import json

import pytest

from payment_bench import CARD, NUMBER, Gateway
from reference_services.payment_gateway import cards


def evidence(gateway: Gateway) -> bytes:
    """Return everything that the service left: files, log lines, spans, metrics, audit entries."""
    world, name = gateway.world, "payment-gateway"
    left = [path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()]
    left.append(json.dumps(world.log_lines(name)).encode())
    left += [span.to_json().encode() for span in world.spans(name)]
    left.append(world.obs(name).metrics.exposition(None)[1])
    left.append(json.dumps(world.obs(name).audit.read(limit=1000).entries).encode())
    return b"\n".join(left)


def found_numbers(left: bytes) -> list[str]:
    return [
        number for number in cards.TEST_CARDS if any(form in left for form in cards.written_forms(number))
    ]


class TestNoCardNumber:
    """PCI DSS 4.0.1, 3.3.1 and 3.5.1: no card number and no security code anywhere."""

    def test_nowhere(self, gateway: Gateway) -> None:
        """Every published card is tokenised, used, mistyped and put where it does not belong; then all is searched."""
        bodies = list[bytes]()
        secret_code = "9137"
        for number in cards.TEST_CARDS:
            found = cards.brand_of(number)
            assert found is not None
            cvc = secret_code if found[1] == 4 else secret_code[1:]
            made = gateway.post("/tokens", {**CARD, "number": number, "cvc": cvc})
            bodies.append(made.data)
            bodies.append(gateway.post("/charge", gateway.bill(100, made.get_json()["id"])).data)
            for wrong in (
                {"number": number, "cvc": "12"}, {"number": f"{number}x"}, {"number": int(number)},
                {"holder": number}, {number: number},
            ):  # fmt: skip
                bodies.append(gateway.post("/tokens", {**CARD, **wrong}).data)
        number = NUMBER
        for wrong in (
            {"payment_method": number},
            {"description": number},
            {"currency": number},
            {"patient_id": number},
        ):
            bodies.append(gateway.post("/process", {**gateway.bill(100), **wrong}).data)
        bodies.append(gateway.post("/tokens", number, key=number).data)
        bodies.append(gateway.get(f"/payments/{number}?card={number}").data)
        bodies.append(gateway.client.get(f"/{number}", headers={"User-Agent": number}).data)
        left = evidence(gateway)
        assert found_numbers(b"\n".join(bodies)) == []
        assert found_numbers(left) == []
        assert f'"{secret_code}"'.encode() not in left

    def test_request_id(self, gateway: Gateway) -> None:
        """A card number sent as request id is not repeated either."""
        answer = gateway.client.get("/nowhere", headers={"X-Request-Id": "4242424242424242"})
        assert found_numbers(answer.data + str(answer.headers).encode() + evidence(gateway)) == []

    @pytest.mark.parametrize("form", range(len(cards.written_forms("4242424242424242"))))
    def test_the_search_finds_them(self, gateway: Gateway, form: int) -> None:
        """A number written anywhere in any of the forms is found, so that finding none means something."""
        gateway.token()
        written = cards.written_forms("4242424242424242")[form].decode()
        gateway.database(f"UPDATE token SET brand = 'x{written}x'")
        assert found_numbers(evidence(gateway)) == ["4242424242424242"]
