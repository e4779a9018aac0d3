"""Probes that ask the service itself: does it refuse strangers and forged tokens, does it send its headers?

45 CFR 164.312(a)(1) and (d), RFC 8725 (tokens), OWASP Secure Headers Project, RFC 9651.

Limits: requests do not pass the server or the edge. Tokens that only the issuer can make (expired, other
audience) are tried only when the service supplies them. Without one that is good but for its signature nothing says
that signatures are checked, as every other forged token is refused for its issuer too: ``partial``. So is a route that
answers it with 403, as its scope or role may have refused before any signature was looked at (RFC 6750 §3.1).
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from healthobs.compliance.control import Call, Outcome, ProbeContext, Route

#: Name in `ProbeContext.refused_tokens` of a token with which nothing is wrong but its signature.
BAD_SIGNATURE = "bad_signature"
_UNSIGNED = f"{BAD_SIGNATURE} and alg=none"
_REFUSED = frozenset({401, 403})
NO_APPLICATION = Outcome("unknown", "no application is bound: use init_app", unset=True)
NO_ROUTES = Outcome("unknown", "no route was named: give init_app the argument protected", unset=True)
_FAR_FUTURE = 4_102_444_800  # 2100-01-01
_LONG_AGO = 946_684_800  # 2000-01-01
_HEADER = {"alg": "RS256", "typ": "at+jwt", "kid": "canary"}
_SHOWN = 10

#: What each header must say, in lower case. A list of its own, so that it does not repeat a mistake.
_SECURITY = {
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "deny",
}
_COMPLIANCE = {"compliance": "frameworks=", "data-classification": "conf=", "data-handling": "no-store"}
#: Headers of which one member says it; of a text that ends in an equals sign, one that begins with it.
_LISTS = frozenset({"cache-control", "content-security-policy", *_COMPLIANCE})
#: Requests whose answers are looked at, and the statuses that these are meant to have; some refuse before they route. Of
#: several paths the next is asked where one has another status: a service that is not alive answers no success on `/health`.
_ANSWERS = (
    ("a success", "GET", ("{}/health", "{}/metrics"), frozenset({200})),
    ("an unknown path", "GET", ("/healthobs-control-canary",), frozenset({404}) | _REFUSED),
    ("a wrong method", "DELETE", ("{}/health",), frozenset({405})),
)


def refuses_strangers(context: ProbeContext) -> Outcome:
    """Call every protected route without credentials."""
    if context.call is None:
        return NO_APPLICATION
    if not context.protected:
        return NO_ROUTES
    answered = _not_refused(_answers(context.call, context.protected, {"no credentials": None}))
    if answered:
        return Outcome("fail", f"not refused: {'; '.join(answered)}", len(answered))
    return Outcome(
        "pass", "every protected route refused a caller without credentials", len(context.protected)
    )


def refuses_bad_tokens(context: ProbeContext) -> Outcome:
    """Call every protected route with tokens that must not be accepted."""
    if context.call is None:
        return NO_APPLICATION
    if not context.protected:
        return NO_ROUTES
    supplied = dict(context.refused_tokens()) if context.refused_tokens is not None else {}
    tokens: dict[str, str | None] = {**_forged_tokens(), **supplied}
    forged = supplied.get(BAD_SIGNATURE)
    if forged is not None:
        claims = forged.split(".")[1]
        tokens[_UNSIGNED] = f"{_json({**_HEADER, 'alg': 'none'})}.{claims}."
    answers = list(_answers(context.call, context.protected, tokens))
    answered = _not_refused(answers)
    if answered:
        return Outcome("fail", f"not refused: {'; '.join(answered[:_SHOWN])}", len(answered))
    seen = f"refused on {len(context.protected)} routes: {', '.join(sorted(tokens))}"
    if forged is None:
        return Outcome("partial", seen, len(tokens), ("a token of which only the signature is wrong",))
    unjudged = dict.fromkeys(
        route for route, name, status in answers if name in (BAD_SIGNATURE, _UNSIGNED) and status != 401
    )
    if unjudged:
        missing = tuple(
            f"the signature on {route}: its scope or role refused first (403)" for route in unjudged
        )
        return Outcome("partial", seen, len(tokens), missing)
    return Outcome("pass", seen, len(tokens))


def _answers(
    call: Call, routes: Iterable[Route], tokens: Mapping[str, str | None]
) -> Iterator[tuple[str, str, int]]:
    """Yield each route, the name of each token, and the status of the answer."""
    for route in routes:
        for name, token in tokens.items():
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            yield f"{route.method} {route.path}", name, call(route.method, route.path, headers, b"").status


def _not_refused(answers: Iterable[tuple[str, str, int]]) -> list[str]:
    return [
        f"{route} with {name} answered {status}" for route, name, status in answers if status not in _REFUSED
    ]


def _forged_tokens() -> dict[str, str | None]:
    """Return tokens that anybody can make."""
    claims = {
        "iss": "https://canary.invalid",
        "sub": "canary",
        "client_id": "canary",
        "aud": "canary",
        "jti": "canary",
        "scope": "admin",
        "iat": _LONG_AGO,
        "exp": _FAR_FUTURE,
    }
    signature = _encode(os.urandom(256))
    return {
        "garbage": "canary",
        "alg=none": f"{_json({**_HEADER, 'alg': 'none'})}.{_json(claims)}.",
        "a random signature": f"{_json(_HEADER)}.{_json(claims)}.{signature}",
        "a random signature and expired": f"{_json(_HEADER)}.{_json({**claims, 'exp': _LONG_AGO})}.{signature}",
    }


def _json(members: Mapping[str, object]) -> str:
    return _encode(json.dumps(members, separators=(",", ":")).encode())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sends_headers(context: ProbeContext) -> Outcome:
    """Look at the headers of a success, an unknown path, a wrong method, and of what protected routes answer to strangers."""
    if context.call is None:
        return NO_APPLICATION
    expected = dict(_SECURITY)
    if context.settings.audience == "all":
        expected |= _COMPLIANCE
    lacking: list[str] = []
    statuses: list[str] = []
    missing: list[str] = []
    for what, method, paths, meant in _ANSWERS:
        answers: list[int] = []
        for path in paths:
            reply = context.call(method, path.format(context.settings.endpoint_prefix), {}, b"")
            answers.append(reply.status)
            lacking += [f"{name} on {reply.status}" for name in _weak(reply.headers, expected)]
            if reply.status in meant:
                break
        else:
            missing.append(f"{what}, as it was answered {' and '.join(map(str, answers))}")
        statuses += map(str, answers)
    for route in context.protected:
        reply = context.call(route.method, route.path, {}, b"")
        on = f"{reply.status} of {route.method} {route.path}"
        lacking += [f"{name} on {on}" for name in _weak(reply.headers, expected)]
    if lacking:
        return Outcome("fail", f"missing or weak: {', '.join(lacking[:_SHOWN])}", len(lacking))
    seen = f"{len(expected)} headers on each of {', '.join(statuses)}"
    if context.protected:
        seen += f" and on what {len(context.protected)} protected routes answer to strangers"
    looked_at = len(statuses) + len(context.protected)
    return Outcome("partial" if missing else "pass", seen, looked_at, tuple(missing))


def _weak(headers: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of headers that lack, or do not say what they must."""
    return [name for name, said in expected.items() if not _says(name, headers.get(name, ""), said)]


def _says(name: str, value: str, said: str) -> bool:
    value = value.strip().lower()
    if name not in _LISTS:
        return value == said
    members = [member.strip() for member in re.split("[,;]", value)]
    return any(member.startswith(said) if said.endswith("=") else member == said for member in members)
