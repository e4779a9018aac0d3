"""What auth-service observes about itself, beside the library's controls.

* H-308.3C, end of access (45 CFR 164.308(a)(3)(ii)(C)): a token that was revoked is refused from then on.
* H-312.a2iii, automatic log-off (45 CFR 164.312(a)(2)(iii)): a token that has expired is refused.

Limits: asked of the rules that `POST /introspect` applies; services that verify tokens offline go on accepting a
revoked one until it expires.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from healthobs.compliance import Control, Outcome, ProbeContext, control
from reference_services.auth import domain

if TYPE_CHECKING:
    from reference_services.auth.service import Service

#: The longest that a token may live unused or not (company policy; PCI DSS 4.0 8.2.8 names the same time).
MAX_TOKEN_SECONDS = 900
_GRACE_SECONDS = 60
_CANARY = domain.OAuthClient("canary", "", ("canary",), ())
_REVOKED = "a canary token holds, and does not once it is revoked"
_EXPIRED = f"a canary token that has expired is refused, and tokens live at most {MAX_TOKEN_SECONDS} s"


def controls(service: Callable[[], Service]) -> tuple[Control, ...]:
    """Return the controls of the service that `service` returns once it exists."""
    return (
        control("H-308.3C", criterion=_REVOKED)(lambda _context: revocation_holds(service())),
        control("H-312.a2iii", criterion=_EXPIRED)(Expiry(service)),
    )


def revocation_holds(service: Service) -> Outcome:
    """Issue a canary token, which nobody gets, and revoke it."""
    token, claims = _issue(service, age_s=0)
    if service.valid_claims(token) is None:
        return Outcome("fail", "a canary token that was just issued is refused")
    with service.kit.transaction() as connection:
        service.store.revoke(connection, claims["jti"], claims["exp"], claims["iat"])
    if service.valid_claims(token) is not None:
        return Outcome("fail", "a canary token is accepted after it was revoked")
    return Outcome("pass", "a canary token was accepted, revoked, and refused")


class Expiry:
    """Present tokens that have expired, one of them issued while this process ran; look at how long one lives.

    The one that was issued ages by the monotonic clock, so that a wall clock that stands still or is set back, by
    which every token lives longer, is found.
    """

    def __init__(self, service: Callable[[], Service]) -> None:
        self._service = service
        self._kept: tuple[str, int] | None = None

    def __call__(self, context: ProbeContext) -> Outcome:
        """Present them."""
        service, now_ns = self._service(), context.clock.monotonic_ns()
        fresh, claims = _issue(service, age_s=0)
        lives_s = claims["exp"] - claims["iat"]
        if lives_s > MAX_TOKEN_SECONDS:
            return Outcome("fail", f"tokens live {lives_s} s")
        kept, issued_ns = self._kept or (fresh, now_ns)
        presented = [_issue(service, age_s=lives_s + _GRACE_SECONDS)[0]]
        if now_ns - issued_ns > (lives_s + _GRACE_SECONDS) * 10**9:
            presented.append(kept)
            kept, issued_ns = fresh, now_ns
        if any(service.valid_claims(token) is not None for token in presented):
            return Outcome("fail", "a canary token is accepted after its time", len(presented))
        self._kept = kept, issued_ns
        return Outcome("pass", f"expired canary tokens were refused; tokens live {lives_s} s", len(presented))


def _issue(service: Service, *, age_s: int) -> tuple[str, dict[str, Any]]:
    settings = service.kit.settings
    claims = domain.access_claims(
        _CANARY,
        _CANARY.scopes,
        issuer=settings.issuer,
        audience=settings.audience,
        now_s=service.kit.clock.wall_ns() // 10**9 - age_s,
    )
    return service.key.sign(claims), claims
