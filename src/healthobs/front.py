"""What the front ends share: what they take by name, and how one joins an application to its `Observability`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar

from opentelemetry.trace import Span

from healthobs import _runtime
from healthobs.compliance.control import Call, Route
from healthobs.decorators.audit_entry import rehearse
from healthobs.endpoints import Authorize, Endpoints
from healthobs.exceptions import ConfigurationError
from healthobs.http import HttpServer
from healthobs.observability import Observability

if TYPE_CHECKING:
    from healthobs.audit.witness import Witness

#: What is known of a request before it is read: the WSGI environment, or the ASGI scope.
Caller = TypeVar("Caller")
#: A `response_hook`; what it is told differs by front end.
Hook = TypeVar("Hook", bound=Callable[..., object])


class FrontOptions(TypedDict, Generic[Caller, Hook], total=False):
    """What every front end takes by name.

    What a hook or one of the other functions raises is counted (component ``hook``), logged the first time
    (``telemetry_fault``), and counts as no.
    """

    #: Checks credentials for `/audit/trail` and compliance evidence.
    authorize: Authorize | None
    #: Told the WSGI environment or ASGI scope, says whether the caller may see compliance headers when the audience
    #: is ``trusted``; default nobody.
    trusted: Callable[[Caller], bool] | None
    #: HL7 v3 Confidentiality of responses that no `@classified` names; default ``N``. Where headers are sent, one of
    #: R or V has `Cache-Control: no-store` whatever the application says.
    conf: str
    #: Routes that controls call without credentials and with bad ones: they must refuse.
    protected: Iterable[Route]
    #: By name, tokens that must be refused: ``bad_signature``, ``expired`` (see `ProbeContext`).
    refused_tokens: Callable[[], Mapping[str, str]] | None
    #: Cosigns other logs' checkpoints under ``/witness``; default nothing does.
    witness: Witness | None
    #: Told the same as `trusted`, says whether the caller's trace is continued; default `Settings.trust_incoming`.
    trust_incoming: Callable[[Caller], bool] | None
    #: Told the server span and the environment or scope, before the application is called.
    request_hook: Callable[[Span, Caller], object] | None
    #: Told the server span and what starts the response: under WSGI the status line and the headers, under ASGI the
    #: message.
    response_hook: Hook | None


_FUNCTIONS = ("authorize", "trusted", "refused_tokens", "trust_incoming", "request_hook", "response_hook")


def check_arguments(application: object, obs: object, options: Mapping[str, Any]) -> None:
    """Refuse what no front end can be made of, before anything has changed.

    Args:
        application: What is to be observed.
        obs: Where to record.
        options: As of `FrontOptions`.

    Raises:
        ConfigurationError: With every problem found.
    """
    problems: list[str] = []
    if isinstance(application, Observability):
        problems.append("give first the application, then the Observability")
    elif not isinstance(obs, Observability):
        problems.append("give an Observability after the application: Observability(settings)")
    for name in _FUNCTIONS:
        given = options.get(name)
        if given is not None and (
            not callable(given) or iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__)
        ):
            problems.append(f"{name} must be a function, and not one of async def")
    if problems:
        raise ConfigurationError(*problems)


class Front(ABC, Generic[Caller, Hook]):
    """A front end around one application: what does not depend on how the server calls it.

    Args:
        obs: Where to record.
        authorize: See `FrontOptions`, as for the others.
    """

    def __init__(
        self,
        obs: Observability,
        *,
        authorize: Authorize | None = None,
        trusted: Callable[[Caller], bool] | None = None,
        conf: str = "N",
        protected: Iterable[Route] = (),
        refused_tokens: Callable[[], Mapping[str, str]] | None = None,
        witness: Witness | None = None,
        trust_incoming: Callable[[Caller], bool] | None = None,
        request_hook: Callable[[Span, Caller], object] | None = None,
        response_hook: Hook | None = None,
    ) -> None:
        self.obs: Final = obs
        self.endpoints: Final = Endpoints(obs, authorize, witness=witness)
        self.request_hook: Final = request_hook
        self.response_hook: Final = response_hook
        self._server = HttpServer(obs, conf=conf)
        self._trusted = trusted
        self._trust_incoming = trust_incoming
        self._hooks = {
            "trusted": trusted,
            "trust_incoming": trust_incoming,
            "request_hook": request_hook,
            "response_hook": response_hook,
        }
        self._defers: bool | None = None
        self._server.declare_later(self._observed_routes)
        _runtime.activate(obs)
        obs.health.adopt_pending()
        if obs.controls is not None:
            obs.controls.bind(self._self_caller(), protected, refused_tokens, partial(rehearse, obs))
            obs.controls.arm(obs.settings.control_interval_seconds)

    @abstractmethod
    def own_templates(self) -> list[str]:
        """Return the templates of the application's own routes, as far as its table shows them."""

    @abstractmethod
    def _observed_routes(self) -> Iterable[tuple[str, str]]:
        """Return method and template of each route that is observed, as far as they are known."""

    @abstractmethod
    def _self_caller(self) -> Call:
        """Return what calls the application as a client would, for controls."""

    @property
    def unobserved(self) -> frozenset[str]:
        """Paths that leave no span, sample or access line: operational and excluded ones."""
        return frozenset((*self.endpoints.paths, *self._server.excluded))

    def is_trusted(self, caller: Caller) -> bool:
        """Say whether the caller may see compliance headers."""
        return self._trusted is not None and bool(self.safely(self._trusted, caller))

    def safely(self, hook: Callable[..., object], *arguments: Any) -> object:
        """Return what `hook` says, or None when it raises, which is counted, and logged the first time."""
        try:
            return hook(*arguments)
        except Exception as exc:  # noqa: BLE001 - a hook's fault is not the caller's
            part = next((name for name, given in self._hooks.items() if given is hook), "exchange")
            self.obs.fault("hook", part, exc)
            return None

    def take_off(self) -> None:
        """End the controls, and be the process default no more."""
        if self.obs.controls is not None:
            self.obs.controls.stop()
        if _runtime.process.default is self.obs:
            _runtime.install(None)
