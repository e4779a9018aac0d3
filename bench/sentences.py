"""Generated clinical sentences: with one identifier of a known kind, or with none; the same for the same seed."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Iterator

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_FIRST = ("Ottoline", "Bartholomew", "Xiomara", "Thaddeus", "Persephone", "Anselm")
_LAST = ("Quassler", "Vandersloot", "Okonkwo", "Ibáñez", "Thistlewood", "Marchetti")
_MBI_LETTERS = "ACDEFGHJKMNPQRTUVWXY"

_AROUND = (
    "Patient seen in clinic, {}, tolerating metformin 500 mg twice daily.",
    "BP 132/84, HR 71. {} noted on intake; follow up as needed.",
    "Reviewed outside records ({}); A1c 7.2 %, LDL 101 mg/dL.",
    "{} - discharge home with instructions, no acute distress",
    "Nurse documented {}. Pain 4/10, improved after 2 doses.",
)
_CLEAN = (
    "BP {a}/{b}, HR {c}, SpO2 {d} % on room air.",
    "Metformin {e} mg twice daily, last A1c {f} %.",
    "Temp {g} C, weight {c} kg, height 1{c} cm, BMI 2{h}.{h}.",
    "Wound {h} x {h} cm, changed dressing, pain {h}/10.",
    "Gravida {h} para {h}, {h}{h} weeks, fetal heart rate 1{c}.",
    "Creatinine 1.{h} mg/dL, eGFR {c}, potassium 4.{h} mmol/L.",
    "Ambulated {e} feet with walker, tolerated {h} of {h} sets.",
    "CT of the chest shows a {h} mm nodule in segment {h}.",
    "Heparin {e} units per hour, PTT {c} seconds, INR {h}.{h}.",
    "Patient is {c} years old with a {h} day history of cough.",
    "Dose {h} of {h} given, lot checked, next in {h} weeks.",
    "Glasgow coma scale 1{h}, pupils {h} mm, moves all 4 limbs.",
    "I&O {e} in, {e} out over 8 hours; urine output {c} mL/h.",
    "Peak flow {e} L/min ({c} % predicted), FEV1 2.{h} L.",
    "Took {f} s for {e} rows, retry {h} of 5, HTTP/1.1 503.",
)


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _luhn(prefix: str, number: str) -> str:
    total = 0
    for position, digit in enumerate(reversed(prefix + number)):
        doubled = int(digit) * (2 if position % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return number + str(-total % 10)


def _date(rng: random.Random) -> str:
    year, month, day = rng.randrange(1930, 2026), rng.randrange(1, 13), rng.randrange(1, 29)
    name = _MONTHS[rng.randrange(len(_MONTHS))]
    forms = (
        f"{year}-{month:02d}-{day:02d}", f"{month:02d}/{day:02d}/{year}", f"{month}/{day}/{year % 100:02d}",
        f"{name} {day}, {year}", f"{day} {name} {year}", f"{day:02d}-{name[:3]}-{year}",
    )  # fmt: skip
    return rng.choice(forms)


def _phone(rng: random.Random) -> str:
    area, office, line = f"{rng.randrange(201, 990)}", "555", f"01{_digits(rng, 2)}"
    forms = ("({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "{}{}{}")
    return rng.choice(forms).format(area, office, line)


def _card(rng: random.Random) -> str:
    number = _luhn("", "4" + _digits(rng, 14))
    separator = rng.choice(("", " ", "-"))
    return separator.join(number[start : start + 4] for start in range(0, 16, 4))


def _mbi(rng: random.Random) -> str:
    def letter() -> str:
        return rng.choice(_MBI_LETTERS)

    def either() -> str:
        return rng.choice(_MBI_LETTERS + string.digits)

    parts = (
        f"{rng.randrange(1, 10)}{letter()}{either()}{_digits(rng, 1)}",
        f"{letter()}{either()}{_digits(rng, 1)}",
        f"{letter()}{letter()}{_digits(rng, 2)}",
    )
    return rng.choice(("-", "")).join(parts)


def _iban(rng: random.Random) -> str:
    account = _digits(rng, 18)
    check = 98 - int(account + "1314" + "00") % 97  # DE
    return f"DE{check:02d}{account}"


def _dea(rng: random.Random) -> str:
    digits = _digits(rng, 6)
    total = sum(map(int, digits[0::2])) + 2 * sum(map(int, digits[1::2]))
    return f"{rng.choice('ABFM')}{rng.choice(string.ascii_uppercase)}{digits}{total % 10}"


def _url(rng: random.Random) -> str:
    return f"https://portal.example.org/patients/{_digits(rng, 5)}"


#: Kind of identifier -> what makes one, with the words that go with it.
IDENTIFIERS: dict[str, Callable[[random.Random], str]] = {
    "social security number": lambda rng: (
        f"{rng.randrange(100, 665)}-{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"
    ),
    "telephone or fax": _phone,
    "e-mail address": lambda rng: f"{rng.choice(_FIRST).lower()}.{_digits(rng, 2)}@example.org",
    "date": _date,
    "medical record number": lambda rng: (
        f"{rng.choice(('MRN', 'MRN:', 'medical record number'))} {_digits(rng, 8)}"
    ),
    "health plan number": lambda rng: f"member ID {rng.choice('ABCH')}{_digits(rng, 8)}",
    "Medicare beneficiary": _mbi,
    "account number": lambda rng: f"account number {_digits(rng, 9)}",
    "licence number": lambda rng: f"license no. {rng.choice('DLX')}{_digits(rng, 7)}",
    "device serial": lambda rng: f"device serial number SN-{_digits(rng, 6)}",
    "UDI": lambda rng: f"(01){_digits(rng, 14)}(21)A{_digits(rng, 4)}",
    "payment card": _card,
    "provider (NPI)": lambda rng: _luhn("80840", rng.choice("12") + _digits(rng, 8)),
    "provider (DEA)": _dea,
    "bank account (IBAN)": _iban,
    "URL": _url,
    "IPv4 address": lambda rng: ".".join(str(rng.randrange(1, 255)) for _ in range(4)),
    "MAC address": lambda rng: ":".join(f"{rng.randrange(256):02x}" for _ in range(6)),
    "age over 89": lambda rng: f"{rng.randrange(90, 105)}-year-old",
}
#: What no pattern can find: reported, so that nobody believes otherwise.
NOT_BY_PATTERN: dict[str, Callable[[random.Random], str]] = {
    "name": lambda rng: f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
    "place": lambda rng: f"lives in {rng.choice(('Walla Walla', 'Sleepy Hollow', 'Little Compton'))}",
    "relative date": lambda rng: rng.choice(("last Tuesday", "two days ago", "on her birthday")),
}


def with_one(kind: str, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield sentences with one identifier of `kind`, each with the identifier's telling part."""
    rng = random.Random(f"{seed}{kind}")
    make = IDENTIFIERS.get(kind) or NOT_BY_PATTERN[kind]
    for _ in range(count):
        identifier = make(rng)
        telling = identifier.split(" ")[-1] if kind in IDENTIFIERS and "number" in kind else identifier
        yield rng.choice(_AROUND).format(identifier), telling


def clean(count: int, seed: int) -> Iterator[str]:
    """Yield sentences without any identifier."""
    rng = random.Random(seed)
    for _ in range(count):
        numbers = {
            "a": rng.randrange(95, 190), "b": rng.randrange(50, 110), "c": rng.randrange(40, 89), "d": rng.randrange(88, 100),
            "e": rng.choice((5, 25, 50, 100, 500, 850, 1000)), "f": f"{rng.uniform(4, 14):.1f}",
            "g": f"{rng.uniform(36, 40):.1f}", "h": rng.randrange(2, 10),
        }  # fmt: skip
        yield rng.choice(_CLEAN).format(**numbers)
