"""Find identifiers in free text and replace them by marks such as ``[PHI:ssn]``.

The kinds are those of 45 CFR 164.514(b)(2)(i) that have a pattern: telephone and fax numbers, e-mail
addresses, social security numbers, dates other than a year, IP and MAC addresses, URLs, ages over 89,
certificate, account and record numbers after a keyword; further card numbers (PCI DSS 3.4), NPI, MBI, DEA,
VIN, IBAN and UDI.

The scan is staged, so that text without a digit, ``@``, ``:``, ``=`` or ``www.`` costs one search. Work is linear in
the text: every regular expression begins with a character class or literal, its parts exclude each other,
and look-ups from a hit go at most to the previous hit; text beyond `SCAN_LIMIT` is replaced, not scanned.

Limits: names, places and relative dates have no pattern and are not found; nor are numbers in words, or
encoded text (percent-encoding, Base64). Telemetry should carry no free text at all.
"""

from __future__ import annotations

import re
from itertools import pairwise

from healthobs.redaction import numbers
from healthobs.redaction.fold import fold
from healthobs.redaction.identifiers import is_dea, is_iban, is_vin

#: Characters of a text that are scanned; what follows is replaced by ``[PHI:length]``.
SCAN_LIMIT = 4096
#: Last characters of an over-long text that are scanned but not kept: an identifier cut in two would be missed.
_MARGIN = 128
#: Hardly any text needs three; one that needs more is made to, and is replaced whole.
_MAX_PASSES = 8

Finding = tuple[int, int, str]

#: Kinds that another kind found at the same place names better.
_VAGUE = {"id": 1, "key": 2}

_TRIGGER = re.compile(r"[0-9@:=]|[wW]{3}\.")
#: What counts as short text.
_SHORT = 64
#: Short text without any of these has nothing but what a word beside it gives away: `client-1`, `3 of 5`.
_RISKY = re.compile(r"[@:=\\\x1b]|[wW]{3}\.|[a-z][A-Z]|\.[^.]*\.|(?:-[^-]*){5}|[0-9](?:[^0-9]*[0-9]){3}")
_DIGIT = re.compile(r"[0-9]")
_MARK = re.compile(r"\[PHI:[a-z_]{1,32}\]")
_MARK_FOLDED = re.compile(r"\[phi:[a-z_]{1,32}\]")
_UUID_LENGTH = 36
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}(?![0-9a-f])")
#: A UUID, or a `traceparent`.
_SURROGATE = re.compile(
    rf"{_UUID.pattern}|(?<![0-9a-z])00-[0-9a-f]{{32}}-[0-9a-f]{{16}}-[0-9a-f]{{2}}(?![0-9a-z])"
)
_EMAIL_STOP = frozenset(" \t\r\n\v\f@<>()[]{},;:\"'=/|\\`?&")
_URL_END = re.compile(r"[\s<>\"'`\[\]{}|\\^]|\Z")
_SCHEME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+.-")

# A year alone may stay after these (45 CFR 164.514(b)(2)(i)(C)); after others four digits are a number.
#: Between the words of a keyword: a text writes a blank, a name of a field another sign.
_JOIN = "[ ._-]"
_BIRTH = f"date{_JOIN}of{_JOIN}birth|birth{_JOIN}?date|birthday|dob|born"
_STRONG = (
    f"medical{_JOIN}record|social{_JOIN}security|policy{_JOIN}(?:number|no)|member{_JOIN}id|"
    f"patient{_JOIN}(?:id|number|no)|chart{_JOIN}(?:number|no)|health{_JOIN}plan|subscriber|beneficiary|medicare|medicaid|"
    "passport|mrn|ssn|npi|mbi|hicn|dea|iban|imei|udi|vin|nhs"
)
_WEAK = (
    "account|acct|member|policy|license|licence|serial|device|claim|encounter|admission|certificate|patient|"
    "record|prescription|plan|chart|card|"
    # a path: `/patients/7654321`
    "patients(?=/[a-z0-9])|members(?=/[a-z0-9])"
)
_KEYWORD = re.compile(
    # The value is only looked at: in `device serial number 8812` the first keyword must not take the second.
    rf"(?<![a-z])(?:(?P<birth>{_BIRTH})|(?P<strong>{_STRONG})|(?:{_WEAK}))(?![a-z])"
    # `/patients/{patient_id} 200`, `/patients/<mrn>/icd10`
    r"(?!\}[^a-z0-9]|>/)"
    # Six signs, so that one does not reach beyond a mark of seven; `": "` in a text in a text has as many. A column of a
    # table is filled up with blanks before them or after them.
    r"(?=[ \t]{0,40}+[^a-z0-9]{0,6}[ \t]{0,40}+(?:(?:number|num|no|nr|id|code|is|was|of|on)(?![a-z])[^a-z0-9]{0,6}){0,2}"
    r"(?:b['\"])?(?P<value>[a-z0-9][a-z0-9./_-]{0,255}))"
)
_SPACED_DATE = re.compile(
    r"(?:(?:1[89]|20)[0-9]{2} [0-9]{1,2} [0-9]{1,2}|[0-9]{1,2} [0-9]{1,2} (?:1[89]|20)[0-9]{2})(?![0-9a-z])"
)
_NUMBERED = re.compile(r"[a-z][a-z_]*_[0-9]{1,2}(?:\.[a-z_]+)?")
_VALUE_REST = re.compile(r"[a-z0-9./_-]*")
_PLAIN_YEAR = re.compile(r"(?:1[89]|20)[0-9]{2}")
_OPAQUE_ID = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
#: Ids of traces, hashes and addresses of objects: `dea`, `dec` and `feb` in them are no words.
_HEXADECIMAL = re.compile(r"(?<![0-9a-z])(?:0x[0-9a-f]{4,16}|(?:[0-9a-f]{8}){2,16})(?![0-9a-z])")
_WORDLESS = str.maketrans("abcde", "fffff")
_PHONE_AFTER = re.compile(
    r"(?<![a-z])(?:tele)?(?:phone|fax|mobile|cell|tel)(?![a-z])[^a-z0-9+(]{0,6}"
    r"(?:(?:number|no|is)(?![a-z])[^a-z0-9+(]{0,6})?(?P<value>[0-9+(][0-9 ().-]{5,})"
)
_NAME_OF = "patient|first|last|full|given|family|middle|maiden|sur|user"
_FIELD = (
    "address|street|city|zip|diagnosis|password|passwd|pwd|secret|token|authorization|cookie|email|phone|fax|ssn|"
    "dob|mrn"
)
#: Every named field contains one of these as a whole word.
_FIELD_WORDS = frozenset(
    (
        *_FIELD.split("|"),
        *(f"{word}name" for word in _NAME_OF.split("|")),
        "name",
        "api",
        "apikey",
        "birth",
        "birthdate",
    )
)
_NAMED_FIELD = re.compile(
    rf"(?<![a-z0-9_.-])(?:(?:{_NAME_OF})?[ _-]?name|{_FIELD}|api[ _-]?key|birth_?date)"
    r"\\{0,3}[\"']?[ \t]{0,3}[=:](?![:/])[ \t]{0,3}"
    # A quoted value ends at its quote; a bare one at the next `key=`, or at the end of the line.
    r"(?:\"(?P<double>(?:[^\"\\\r\n]|\\[^\r\n])*)|'(?P<single>(?:[^'\\\r\n]|\\[^\r\n])*)"
    r"|(?P<bare>(?:(?![,;&|\s]\s?[a-z0-9_.]{1,30}[=:])[^\r\n}\]])+))"
)
_BEARER = re.compile(r"bearer [a-z0-9._~+/=-]{8,}")
_JWT = re.compile(r"(?<![a-z0-9_-])ey[a-z0-9_-]{8,}\.[a-z0-9_-]{4,}\.[a-z0-9_-]*")
_REPR = re.compile(r"\([a-z_][a-z0-9_]*=")
_AGE = re.compile(
    r"(?<![a-z])(?<!max[ _-])(?<!min[ _-])(?<!cache[ _-])(?:aged?)(?![a-z])[^a-z0-9]{0,6}"
    r"(?:(?:is|was|of|(?:in[ _-])?(?:years?|yrs?)|at[ _-](?:admission|death|diagnosis|discharge|onset|visit))[^a-z0-9]{1,3})?"
    r"(?P<after>[0-9]{2,3})(?![0-9])|"
    r"(?<![0-9])(?P<before>[0-9]{2,3})"
    r"(?:[ -]?(?:years?|yrs?)\.?[ -](?:old|of age|male|female|man|woman|lady|gentleman)|[ -]?y/?o|[ -]?y\. ?o\.?)(?![a-z])"
)
_MONTH_NAMES = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    "nov(?:ember)?|dec(?:ember)?|"
    "januar|februar|m(?:\u00e4|ae|a)rz|mai|juni|juli|okt(?:ober)?|dez(?:ember)?|"
    "janvier|f(?:\u00e9|e)vrier|mars|avril|juin|juillet|ao(?:\u00fb|u)t|septembre|octobre|novembre|d(?:\u00e9|e)cembre"
)
_YEAR = r"(?:1[89]|20)[0-9]{2}(?![0-9])"
_DAY = r"(?:3[01]|[12][0-9]|0?[1-9])(?:st|nd|rd|th|er)?(?![0-9a-z])"
_MONTH_DATE = re.compile(
    rf"(?<![a-z])(?:(?:{_MONTH})\.?[ ,-]{{0,3}}(?:{_DAY}(?:[ ,-]{{1,3}}{_YEAR})?|{_YEAR})"
    rf"|may[ ,-]{{1,3}}(?:{_DAY}[ ,-]{{1,3}}{_YEAR}|{_YEAR}|[0-9]{{1,2}}(?:st|nd|rd|th)))"
)
_DAY_MONTH = re.compile(
    r"(?<![0-9])(?:3[01]|[12][0-9]|0?[1-9])(?:st|nd|rd|th|er)?[ .-]{0,2}(?:of )?"
    rf"(?:(?:{_MONTH})(?![a-z])(?:\.?[ ,.-]{{1,3}}(?:{_YEAR}|[0-9]{{2}}(?![0-9])))?|may[ ,.-]{{1,3}}{_YEAR})"
)
#: `12/Mar/1950`, `12_Mar_1950`, `1950/Mar/12`; two parts may be anything: `step_1_dec`, `q1/dec`.
_CUT_DATE = re.compile(
    rf"(?<![0-9a-z])(?:(?:3[01]|[12][0-9]|0?[1-9])(?P<sign>[/_])(?:{_MONTH}|may)(?P=sign)"
    rf"(?:{_YEAR}|(?<=/)[0-9]{{2}}(?![0-9a-z]))|(?:1[89]|20)[0-9]{{2}}(?P<other>[/_])(?:{_MONTH}|may)(?P=other){_DAY})"
)
_WORD = re.compile(r"[a-z]+")
#: A line feed, return or tab as JSON and a repr write it: its letter is no part of the next word.
_ESCAPED = re.compile(r"\\[nrt]")
_SEAM = re.compile(r"[a-z][A-Z]")
#: A word without a digit: what follows a seam in `aB7654321` is part of the identifier.
_LETTERS = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]+(?![A-Za-z0-9])")
_SEWN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
#: ASCII with blanks for all but lower-case letters: splits into words faster than an expression finds them.
_BLANKED = "".join(chr(code) if chr(code).islower() else " " for code in range(128))
_MONTH_WORDS = frozenset(
    _WORD.findall(
        "sept januar februar m\u00e4rz marz maerz mai juni juli okt oktober dez dezember janvier f\u00e9vrier fevrier mars avril "
        "juin juillet ao\u00fbt aout septembre octobre novembre d\u00e9cembre decembre"
    )
).union(*((name, name[:3]) for name in _MONTH_NAMES))
#: Every keyword, age and month pattern contains one of these as a whole word; `12thMarch` has a number's end in it.
_TELLING_WORDS = frozenset(
    _WORD.findall(
        f"{_BIRTH} {_STRONG} {_WEAK} telephone telefax phone fax mobile cell tel age aged old yo y male "
        "female man woman lady gentleman bearer birthdate"
    )
).union(_MONTH_WORDS, *({end + word for word in _MONTH_WORDS} for end in ("st", "nd", "rd", "th", "er"))) - {
    "of", "no", "id", "number",
}  # fmt: skip
#: A short date (`1/2/50`) or IPv4 address has four digits; every other number or token has more.
_FOUR_DIGITS = re.compile(r"[0-9](?:[^0-9]*[0-9]){3}")
#: What every number that `numbers` knows contains: six characters of digits and separators, digits at both ends.
_NUMBER = re.compile(r"[0-9][0-9 .\-/()]{4,}[0-9]")
#: What everything that `_tokens` knows contains; a letter or digit before it would make it part of another word.
_MIXED = re.compile(
    r"(?<![a-z0-9])(?:(?=[a-z0-9]{9})[a-z]*[0-9]|[0-9][a-z][a-z0-9][0-9])|[a-z]{2}[0-9]{2}[ -]|\(01\)"
)
_TOKEN = re.compile(r"[a-z0-9]{9,}")
_MBI_LETTER = "ac-hjkmnp-rt-y"
_MBI = re.compile(
    rf"[1-9][{_MBI_LETTER}][0-9{_MBI_LETTER}][0-9][ -]?[{_MBI_LETTER}][0-9{_MBI_LETTER}][0-9][ -]?"
    rf"[{_MBI_LETTER}]{{2}}[0-9]{{2}}(?![a-z0-9])"
)
#: Only looked at, because in `ref AB12 GB82 WEST …` what is none must not take the one behind it; likewise a card's.
_SPACED_IBAN = re.compile(
    r"(?=(?P<iban>[a-z]{2}[0-9]{2}(?:[ -][a-z0-9]{4}){2,7}(?:[ -][a-z0-9]{1,3}(?![a-z0-9]))?))"
)
_UDI = re.compile(r"\(01\)[0-9]{14}(?:\([0-9]{2,4}\)[a-z0-9./_-]{1,30}){0,8}")
_MAC = re.compile(r"(?<![0-9a-z])[0-9a-f]{2}(?:(?::[0-9a-f]{2}){5}|(?:-[0-9a-f]{2}){5})(?![0-9a-z])")
_DOTTED_MAC = re.compile(
    r"(?<![0-9a-z.])(?=[a-f]*[0-9])[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}(?![0-9a-z]|\.[0-9a-z])"
)
#: A single colon at the end is none of an address's: `2001:db8::1: refused`.
_COLONS = re.compile(r"[0-9a-f:]*(?:[0-9a-f]|::)[0-9.]*")


def scan(text: str) -> tuple[str, tuple[str, ...]]:
    """Return `text` with every identifier replaced, and the kinds replaced.

    The very same string comes back when nothing was found, so `is` tells whether it changed.

    Example:
        >>> scan("call 212-555-0123 about 078-05-1120")
        ('call [PHI:phone] about [PHI:ssn]', ('phone', 'ssn'))
    """
    if len(text) <= SCAN_LIMIT and text.isascii():
        if _TRIGGER.search(text) is None:
            return text, ()
        if (
            len(text) <= _SHORT
            and _RISKY.search(text) is None
            and _TELLING_WORDS.isdisjoint(text.lower().translate(_BLANKED).split())
        ):
            return text, ()
    result, kinds = _scan_once(text)
    # A mark can lay bare what the identifier before it hid (`0NAME=x`), so scan until nothing more is found.
    more, passes = kinds, 1
    while more:
        if passes == _MAX_PASSES:
            return "[PHI:length]", (*kinds, "length")
        result, more = _scan_once(result)
        kinds += more
        passes += 1
    return result, kinds


def _scan_once(text: str) -> tuple[str, tuple[str, ...]]:
    if len(text) > SCAN_LIMIT and _over_long(text):
        return _scan_long(text)
    if text.isascii() and "\x1b" not in text:
        if len(text) == _UUID_LENGTH and _UUID.fullmatch(text):
            return text, ()
        findings = find(text.lower(), text)
    else:
        findings = _find_folded(text)
    return _replace(text, findings) if findings else (text, ())


def _find_folded(text: str) -> list[Finding]:
    shadow, places = fold(text)
    cased = "".join([text[place] for place in places])
    return _placed(find(shadow, cased), places)


def _placed(findings: list[Finding], places: list[int]) -> list[Finding]:
    return [(places[start], places[end - 1] + 1, kind) for start, end, kind in findings]


def _over_long(text: str) -> bool:
    """Return whether `text` is too long to scan, not counting the marks of an earlier pass."""
    return len(text) > 4 * SCAN_LIMIT or len(_MARK.sub("", text)) > SCAN_LIMIT


def _scan_long(text: str) -> tuple[str, tuple[str, ...]]:
    limit = SCAN_LIMIT - _MARGIN
    findings = [
        (start, min(end, limit), kind)
        for start, end, kind in _find_folded(text[:SCAN_LIMIT])
        if start < limit
    ]
    kept, kinds = _replace(text[:limit], findings)
    return kept + "[PHI:length]", (*kinds, "length")


def _replace(text: str, findings: list[Finding]) -> tuple[str, tuple[str, ...]]:
    """Replace the findings in `text`; overlapping ones become one, named after the one that begins first."""
    findings.sort(key=lambda finding: (finding[0], _VAGUE.get(finding[2], 0), -finding[1]))
    parts: list[str] = []
    kinds: list[str] = []
    done = 0
    for start, end, kind in findings:
        if start >= done:
            parts += (text[done:start], f"[PHI:{kind}]")
            kinds.append(kind)
        done = max(done, end)
    parts.append(text[done:])
    return "".join(parts), tuple(kinds)


def find(shadow: str, cased: str = "") -> list[Finding]:
    """Return every identifier in lower-case `shadow` as (start, end, kind), in no order.

    Args:
        shadow: The text in lower case.
        cased: The same with its capitals, which tell where a word of camelCase begins.
    """
    found: list[Finding] = []
    if "[phi:" in shadow:
        # The words in marks of an earlier pass are no keywords; brackets end whatever stands before.
        shadow = _MARK_FOLDED.sub(lambda mark: "]" * len(mark.group()), shadow)
    if "\\" in shadow:
        shadow = _ESCAPED.sub("  ", shadow)
    words = shadow.translate(_BLANKED).split() if shadow.isascii() else _WORD.findall(shadow)
    if "@" in shadow:
        _emails(shadow, found)
    if "://" in shadow or "www." in shadow:
        _urls(shadow, found)
    if "=" in shadow or ":" in shadow:
        _named(shadow, words, found)
    dashes = shadow.count("-")
    if dashes > 4 or shadow.count(":") > 1:
        _hex_addresses(shadow, found)
    if _DIGIT.search(shadow):
        _with_digits(shadow, words, found)
        if _SEAM.search(cased):
            _in_camel_case(shadow, cased, found)
    return found


def _in_camel_case(shadow: str, cased: str, found: list[Finding]) -> None:
    """Find what follows a keyword such as `patientMRN`: a blank is put at each seam."""
    seams = [
        word.start() + part.start()
        for word in _LETTERS.finditer(cased)
        for part in _SEWN.finditer(word.group())
        if part.start()
    ]
    parts: list[str] = []
    places: list[int] = []
    for start, end in pairwise((0, *seams, len(shadow))):
        parts.append(shadow[start:end])
        places += (*range(start, end), end)
    opened = _UUID.sub("_" * _UUID_LENGTH, " ".join(parts))
    if not _TELLING_WORDS.isdisjoint(_WORD.findall(opened)):
        numbered: list[Finding] = []
        _keyword_numbers(opened, numbered)
        _ages(opened, numbered)
        found += _placed(numbered, places)


def _named(shadow: str, words: list[str], found: list[Finding]) -> None:
    """Find what an equals sign or a colon gives away."""
    if not _FIELD_WORDS.isdisjoint(words):
        _named_fields(shadow, found)
    if "=" in shadow and "(" in shadow:
        _representation(shadow, found)


def _with_digits(shadow: str, words: list[str], found: list[Finding]) -> None:
    """Find what has a digit in it: all other kinds."""
    if shadow.count("-") > 2:
        # A UUID is a surrogate, as ids of traces are: its digits are no number. Underscores keep the places.
        shadow = _SURROGATE.sub(lambda token: "_" * len(token.group()), shadow)
    if not _TELLING_WORDS.isdisjoint(words):
        _after_words(shadow, found)
    if _FOUR_DIGITS.search(shadow):
        if _NUMBER.search(shadow):
            numbers.find_numbers(shadow, found)
        numbers.find_cut_numbers(shadow, found)
        if _MIXED.search(shadow):
            _tokens(shadow, found)
    if shadow.count(".") > 1:
        found += [(*match.span(), "mac") for match in _DOTTED_MAC.finditer(shadow)]
    if "ey" in shadow:
        found += [(*match.span(), "secret") for match in _JWT.finditer(shadow)]


def _after_words(shadow: str, found: list[Finding]) -> None:
    """Find what only a word beside it gives away; dear, so one look at the words decides whether to try."""
    shadow = _HEXADECIMAL.sub(lambda token: token.group().translate(_WORDLESS), shadow)
    _keyword_numbers(shadow, found)
    _ages(shadow, found)
    for pattern in (_MONTH_DATE, _DAY_MONTH, _CUT_DATE):
        found += [(*match.span(), "date") for match in pattern.finditer(shadow)]
    found += [(*match.span(), "secret") for match in _BEARER.finditer(shadow)]


def _emails(shadow: str, found: list[Finding]) -> None:
    done = 0
    at = shadow.find("@")
    while at >= 0:
        start = at
        while start > done and shadow[start - 1] not in _EMAIL_STOP:
            start -= 1
        end = at + 1
        while end < len(shadow) and shadow[end] not in _EMAIL_STOP:
            end += 1
        if shadow[at - 1 : at] == '"' and end > at + 1:
            start = _quoted(shadow, done, at)
        if start < at and end > at + 1:
            found.append((start, end, "email"))
        done = at + 1
        at = shadow.find("@", done)


def _quoted(shadow: str, done: int, at: int) -> int:
    """Return where ``"john smith"@`` begins; what stands between two strings (`": "@`) is no name."""
    start = shadow.rfind('"', done, at - 1)
    local = shadow[start + 1 : at - 1]
    return start if start >= 0 and local[:1].isalnum() and local[-1:].isalnum() else at


def _urls(shadow: str, found: list[Finding]) -> None:
    done = 0
    for match in re.finditer(r"://|www\.", shadow):
        start = match.start()
        if start < done:
            continue
        if match.group() == "://":
            while start > done and shadow[start - 1] in _SCHEME:
                start -= 1
        end = _URL_END.search(shadow, match.end())
        done = len(shadow) if end is None else end.start()
        found.append((start, done, "url"))


def _named_fields(shadow: str, found: list[Finding]) -> None:
    """Find ``name=John Smith`` and the like."""
    for match in _NAMED_FIELD.finditer(shadow):
        group = match.lastgroup or "bare"
        value = match.group(group)
        if value.strip("] "):
            found.append((*match.span(group), "key"))


def _representation(shadow: str, found: list[Finding]) -> None:
    """Find ``Patient(name='John')``: from the name of the class to the end of the text."""
    representation = _REPR.search(shadow)
    if representation is not None:
        start = representation.start()
        while start and (shadow[start - 1].isalnum() or shadow[start - 1] in "_."):
            start -= 1
        found.append((start, len(shadow), "type"))


def _hex_addresses(shadow: str, found: list[Finding]) -> None:
    found += [(*match.span(), "mac") for match in _MAC.finditer(shadow)]
    for match in _COLONS.finditer(shadow):
        start, end = match.span()
        if shadow[start - 1 : start].isalnum():  # the rest of a word and its colon: `iface:2001:db8::1`
            start = shadow.find(":", start, end) + 1 or end
        if not shadow[end : end + 1].isalnum() and numbers.is_ipv6(shadow[start:end].rstrip(".")):
            found.append((start, end, "ip"))


def _keyword_numbers(shadow: str, found: list[Finding]) -> None:
    done = 0
    for match in _KEYWORD.finditer(shadow):
        spaced = _SPACED_DATE.match(shadow, match.start("value")) if match.group("birth") else None
        if spaced is not None:
            found.append((*spaced.span(), "date"))
            continue
        value = match.group("value").rstrip(".-/_")
        digits = sum(char.isdigit() for char in value)
        if digits < 3 and _is_numbered(match.group(), value):
            continue
        if match.group("birth"):
            wanted = digits > 0 and len(value) > 2 and _PLAIN_YEAR.fullmatch(value) is None
        elif match.group("strong"):
            wanted = digits > 0 and len(value) > 2
        else:
            wanted = digits > 3 and _OPAQUE_ID.fullmatch(value) is None
        if wanted:
            end = match.start("value") + len(value)
            if end > done and match.end("value") - match.start("value") > 255:
                rest = _VALUE_REST.match(shadow, end)
                end = end if rest is None else rest.end()
            found.append((match.start("value"), end, "id"))
            done = end
    for match in _PHONE_AFTER.finditer(shadow):
        value = match.group("value").rstrip(" ().-")
        if sum(char.isdigit() for char in value) > 6:
            found.append((match.start("value"), match.start("value") + len(value), "phone"))


def _is_numbered(keyword: str, value: str) -> bool:
    """Return whether `value` is a name that a statement numbers: ``mrn = :mrn_1``, ``patient_id = visit_1.patient_id``."""
    named = "_" in keyword or "." in keyword
    return value.rstrip("0123456789") == f"{keyword}_" or (named and _NUMBERED.fullmatch(value) is not None)


def _tokens(shadow: str, found: list[Finding]) -> None:
    """Find identifiers that mix letters and digits."""
    for match in _TOKEN.finditer(shadow):
        token = match.group()
        if len(token) == 9 and is_dea(token):
            found.append((*match.span(), "dea"))
        elif len(token) == 17 and is_vin(token):
            found.append((*match.span(), "vin"))
        elif 15 <= len(token) <= 34 and is_iban(token):
            found.append((*match.span(), "iban"))
    found += [
        (*match.span(), "mbi") for match in _MBI.finditer(shadow) if _begins_word(shadow, match.start())
    ]
    if shadow.count(" ") + shadow.count("-") > 1:
        _spaced_ibans(shadow, found)
    if "(01)" in shadow:
        found += [(*match.span(), "udi") for match in _UDI.finditer(shadow)]


def _spaced_ibans(shadow: str, found: list[Finding]) -> None:
    for match in _SPACED_IBAN.finditer(shadow):
        candidate = match["iban"].replace("-", " ")
        while len(candidate) > 14:
            if is_iban(candidate.replace(" ", "")):
                found.append((match.start(), match.start() + len(candidate), "iban"))
                break
            candidate = candidate.rpartition(" ")[0]


def _begins_word(shadow: str, start: int) -> bool:
    return start == 0 or not shadow[start - 1].isalnum()


def _ages(shadow: str, found: list[Finding]) -> None:
    for match in _AGE.finditer(shadow):
        group = "after" if match.group("after") else "before"
        if int(match.group(group)) > 89:
            found.append((*match.span(group), "age"))
