"""Django's own: what the contract suite of the front ends does not ask."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import override_settings
from django.urls import include, path
from django.views import View

from fronts import DjangoAsgi, DjangoWsgi, Front
from healthobs import HealthobsWarning, _runtime
from healthobs.django import AsgiMiddleware, WsgiMiddleware, init_app, remove_app
from healthobs.exceptions import ConfigurationError
from live_servers import serving, until

NAME, SSN = "Ottoline", "078-05-1120"
BOTH = pytest.mark.parametrize("make", [DjangoWsgi, DjangoAsgi], ids=["wsgi", "asgi"])


@BOTH
class TestRoutes:
    """`http.route` is the template of Django's own table."""

    def test_included(self, make: type[Front]) -> None:
        """What a route is included under is part of it."""
        front = make()
        assert front.get("/patients/4711/icd10").status == 200
        assert front.access()[0]["route"] == "/patients/<str:mrn>/icd10"

    def test_a_path_that_needs_a_slash(self, make: type[Front]) -> None:
        """Django's redirect to it comes from no route."""
        front = make()
        with override_settings(ROOT_URLCONF=_urls(path("beds/", _view))):
            assert front.get("/beds").status == 301
            assert front.get("/beds/").status == 200
        assert [line["route"] for line in front.access()] == ["unmatched", "/beds/"]

    def test_shadowed(self, make: type[Front]) -> None:
        """A route that an endpoint answers from now on is warned of, below an include too."""
        with (
            override_settings(ROOT_URLCONF=_urls(path("", include([path("health", _view)])))),
            pytest.warns(HealthobsWarning, match="/health"),
        ):
            make()


def _view(request: Any) -> Any:
    return HttpResponse("x")


def _urls(*patterns: Any) -> Any:
    return type("urls", (), {"urlpatterns": list(patterns)})


class Claims(View):
    """A class of views."""

    def get(self, _request: Any, mrn: str) -> HttpResponse:
        """Answer."""
        return HttpResponse("x")

    def post(self, _request: Any, mrn: str) -> HttpResponse:
        """Answer."""
        return HttpResponse("x")


urlpatterns = [
    path("claims/<mrn>", Claims.as_view()),
    path("function", Claims().get),
    path("ping", Claims().get),
]


class TestSeriesFromZero:
    """`Settings.series_from_zero`."""

    @BOTH
    def test_there_before_the_first_request(self, make: type[Front]) -> None:
        """A class of views has its methods at 0, a function GET, excluded paths nothing; a request counts on."""
        front = make(series_from_zero=True, excluded=("/ping",))
        routes = _urls(path("claims/<mrn>", Claims.as_view()), path("function", _view), path("ping", _view))
        with override_settings(ROOT_URLCONF=routes):
            name = "http_server_request_duration_seconds_count"
            found = {
                (labels["http_request_method"], labels["http_route"]) for labels, _ in front.samples(name)
            }
            assert found == {("GET", "/claims/<mrn>"), ("POST", "/claims/<mrn>"), ("GET", "/function")}
            assert front.total(name) == 0
            before = len(front.samples(name))
            front.get("/claims/pt-4711")
            assert (front.total(name), len(front.samples(name))) == (1, before)


class TestExceptions:
    """What a view raises."""

    @BOTH
    @pytest.mark.parametrize("view", ["/broken", "/broken-async"])
    def test_is_known_by_type(self, make: type[Front], view: str) -> None:
        """Also where Django runs the view in another thread than it answers in."""
        front = make()
        assert front.get(view).status == 500
        (span,) = front.spans()
        assert (span.attributes or {})["error.type"] == "RuntimeError"
        (line,) = front.access()
        assert (line["exception_type"], line["route"]) == ("RuntimeError", view)
        assert line["error_id"]

    @BOTH
    def test_in_debug_too(self, make: type[Front]) -> None:
        """Django's page with locals and settings goes to the caller, and to no signal."""
        front = make()
        with override_settings(DEBUG=True):
            assert SSN.encode() in front.get("/broken").body
        assert front.access()[0]["exception_type"] == "RuntimeError"
        assert SSN not in front.telemetry()

    @BOTH
    def test_middleware_hears_of_a_missing_entry(self, make: type[Front]) -> None:
        """One that rolls back what raised does so, though healthobs answers for it."""
        heard.clear()
        with override_settings(MIDDLEWARE=[f"{__name__}.Transaction"]):
            front = make()
        assert front.get("/unrecorded").status == 503
        assert heard == ["AuditWriteError", 503]


heard: list[object] = []


class Transaction:
    """A middleware that rolls back what raised, and would answer for it."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        heard.append(response.status_code)
        return response

    def process_exception(self, _request: Any, exception: Exception) -> Any:
        heard.append(type(exception).__name__)
        return HttpResponse("handled")


@BOTH
class TestNoData:
    """What is planted in a request is nowhere afterwards."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_planted(self, make: type[Front], redaction: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Name and number in path, query, header and exception; Django's own lines quote them."""
        monkeypatch.setattr(logging.getLogger("django"), "level", logging.DEBUG)
        front = make(redaction=redaction, capture_stdlib=True, log_level="debug")
        try:
            blank, quote = f"/nowhere/x {NAME}", f"/nowhere/O'X {NAME}"
            for plain in (f"/patients/{NAME}", f"/nowhere/{NAME}/{SSN}", blank, quote, "/broken", "/gone"):
                front.get(f"{plain}?name={NAME}&ssn={SSN}", x_patient=f"{NAME} {SSN}")
        finally:
            front.obs.close()
        telemetry = front.telemetry()
        assert "django.request" in telemetry
        assert NAME not in telemetry
        assert SSN not in telemetry


class TestInitApp:
    """`init_app` and `remove_app`."""

    @BOTH
    def test_taken_off_again(self, make: type[Front]) -> None:
        """Django's own handler is left, without a hook, and answers without telemetry."""
        front = make()
        application = remove_app(front.app)
        assert not {"resolve_request", "process_exception_by_middleware"} & vars(application).keys()
        assert _runtime.process.default is not front.obs
        front.app = application
        assert front.get("/own").status == 200
        assert front.access() == []
        front.app = init_app(application, front.obs)  # and on again
        assert front.get("/own").header("x-request-id")

    def test_kind(self) -> None:
        """WSGI or ASGI, as the application is."""
        assert isinstance(DjangoWsgi().app, WsgiMiddleware)
        assert isinstance(DjangoAsgi().app, AsgiMiddleware)

    def test_refusals(self) -> None:
        """Twice, or something else than Django's."""
        front = DjangoWsgi()
        with pytest.raises(ConfigurationError, match="already"):
            init_app(front.app.app, front.obs)
        with pytest.raises(ConfigurationError, match="get_wsgi_application"):
            init_app(front.app, front.obs)

    @BOTH
    def test_refused_options_leave_nothing(self, make: type[Front]) -> None:
        """An application that was refused for its options is as it was, and is taken with better ones."""
        front = make()
        application = remove_app(front.app)
        with pytest.raises(TypeError, match="authorise"):
            init_app(application, front.obs, authorise=None)
        with pytest.raises(ConfigurationError, match="conf"):
            init_app(application, front.obs, conf="secret")
        front.app = init_app(application, front.obs)
        assert front.get("/own").header("x-request-id")

    @BOTH
    def test_instrumented_already(self, make: type[Front], monkeypatch: pytest.MonkeyPatch) -> None:
        """Where OpenTelemetry's middleware makes the server span inside Django, no second one is made."""
        with override_settings(MIDDLEWARE=["opentelemetry.instrumentation.django.Theirs"]):
            monkeypatch.setattr("django.core.handlers.base.import_string", lambda _: lambda inner: inner)
            monkeypatch.setattr("asgiref.sync.markcoroutinefunction", lambda fn: fn)
            front = make()
        assert front.get("/own").status == 200
        assert front.spans() == ()
        assert front.access()[0]["route"] == "/own"


def _scrape(server: Any) -> str | None:
    """Return the metrics once the exception is in them."""
    metrics: str = server.get("/metrics").data.decode()
    return metrics if 'error_type="RuntimeError"' in metrics else None


PROJECT = """
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

def bed(request, ward):
    return HttpResponse("free")

def broken(request):
    raise RuntimeError("Ottoline 078-05-1120")

urlpatterns = [path("wards/<str:ward>/bed", bed), path("broken", broken)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="for tests", MIDDLEWARE=[])

from django.core.{kind} import get_{kind}_application
from healthobs import Observability, Settings
from healthobs.django import init_app

application = init_app(get_{kind}_application(), Observability(Settings(service_name="ward", endpoints=True)))
"""
SERVERS = {
    "wsgi": ["-m", "gunicorn", "project:application"],
    "asgi": ["-m", "uvicorn", "--port", "PORT", "--no-access-log", "project:application"],
}


@pytest.mark.server
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_behind_a_server(kind: str, tmp_path: Path) -> None:
    """Gunicorn and uvicorn serve it like any application: probes, route, exception, and no data in a line."""
    (tmp_path / "project.py").write_text(PROJECT.format(kind=kind))
    (tmp_path / "gunicorn.conf.py").write_text("import os\nbind = f'127.0.0.1:{os.environ[\"AT\"]}'\n")
    with serving(tmp_path, SERVERS[kind], AT="PORT") as server:
        assert server.get(f"/wards/{NAME}/bed?ssn={SSN}").data == b"free"
        assert server.get("/broken").status == 500
        metrics = until(lambda: _scrape(server))  # a 5xx ends with the application, after its answer
    assert 'http_route="/wards/<str:ward>/bed"' in metrics
    ours = [line for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any("http_request" in line for line in ours)
    assert not any(word in text for word in (NAME, SSN) for text in (metrics, *ours))
