"""Probes that ask the service itself: does it refuse strangers and forged tokens, does it send its headers?

45 CFR 164.312(a)(1) and (d), RFC 8725 (tokens), OWASP Secure Headers Project, RFC 9651.

Limits: requests do not pass the server or the edge. Tokens that only the issuer can make (expired, other
audience) are tried only when the service supplies them. Without one that is good but for its signature nothing says
that signatures are checked, as every other forged token is refused for its issuer too: ``partial``.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping

from healthobs.compliance.control import Call, Outcome, ProbeContext, Route

#: Name in `ProbeContext.refused_tokens` of a token with which nothing is wrong but its signature.
BAD_SIGNATURE = "bad_signature"
_REFUSED = frozenset({401, 403})
NO_APPLICATION = Outcome("unknown", "no application is bound: use init_app", unset=True)
NO_ROUTES = Outcome("unknown", "no route was named: give init_app the argument protected", unset=True)
_FAR_FUTURE = 4_102_444_800  # 2100-01-01
_LONG_AGO = 946_684_800  # 2000-01-01
_HEADER = {"alg": "RS256", "typ": "at+jwt", "kid": "canary"}
_SHOWN = 10

#: What each header must contain, in lower case. A list of its own, so that it does not repeat a mistake.
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
#: Requests whose answers are a success, an unknown path and a wrong method.
_ANSWERS = (("GET", "{}/health"), ("GET", "/healthobs-control-canary"), ("DELETE", "{}/health"))


def refuses_strangers(context: ProbeContext) -> Outcome:
    """Call every protected route without credentials."""
    if context.call is None:
        return NO_APPLICATION
    if not context.protected:
        return NO_ROUTES
    answered = _not_refused(context.call, context.protected, {"no credentials": None})
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
        tokens["bad_signature and alg=none"] = f"{_json({**_HEADER, 'alg': 'none'})}.{claims}."
    answered = _not_refused(context.call, context.protected, tokens)
    if answered:
        return Outcome("fail", f"not refused: {'; '.join(answered[:_SHOWN])}", len(answered))
    seen = f"refused on {len(context.protected)} routes: {', '.join(sorted(tokens))}"
    if forged is None:
        return Outcome("partial", seen, len(tokens), ("a token of which only the signature is wrong",))
    return Outcome("pass", seen, len(tokens))


def _not_refused(call: Call, routes: Iterable[Route], tokens: Mapping[str, str | None]) -> list[str]:
    answered: list[str] = []
    for route in routes:
        for name, token in tokens.items():
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            status = call(route.method, route.path, headers, b"").status
            if status not in _REFUSED:
                answered.append(f"{route.method} {route.path} with {name} answered {status}")
    return answered


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
    """Look at the headers of a success, of an unknown path and of a wrong method."""
    if context.call is None:
        return NO_APPLICATION
    expected = dict(_SECURITY)
    if context.settings.audience == "all":
        expected |= _COMPLIANCE
    lacking: list[str] = []
    statuses: list[str] = []
    for method, path in _ANSWERS:
        reply = context.call(method, path.format(context.settings.endpoint_prefix), {}, b"")
        statuses.append(str(reply.status))
        lacking += [
            f"{name} on {reply.status}"
            for name, value in expected.items()
            if value not in reply.headers.get(name, "").lower()
        ]
    if lacking:
        return Outcome("fail", f"missing or weak: {', '.join(lacking)}", len(lacking))
    return Outcome("pass", f"{len(expected)} headers on each of {', '.join(statuses)}", len(_ANSWERS))
