"""The routes of the contract suite's service, for Django: one view of each kind, for whichever front is being asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import include, path

from fronts import _Django
from healthobs.exceptions import AuditWriteError


def patient(request: HttpRequest, **_parameters: str) -> HttpResponse:
    """Answer."""
    return HttpResponse("active", content_type="text/plain")


def broken(request: HttpRequest) -> HttpResponse:
    """Raise."""
    raise RuntimeError("078-05-1120")


async def broken_async(request: HttpRequest) -> HttpResponse:
    """Raise in an event loop."""
    raise RuntimeError("078-05-1120")


def gone(request: HttpRequest) -> HttpResponse:
    """Refuse."""
    return HttpResponse(status=410)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Answer in two chunks."""

    def chunks() -> Iterator[str]:
        for chunk in "ab":
            _Django.serving.second()
            yield chunk

    async def chunks_async() -> AsyncIterator[str]:
        for chunk in chunks():
            yield chunk

    body: Any = chunks_async() if isinstance(request, ASGIRequest) else chunks()
    return StreamingHttpResponse(body, content_type="text/plain")


def unrecorded(request: HttpRequest) -> HttpResponse:
    """Find the audit store down."""
    raise AuditWriteError("the store is gone")


def own(request: HttpRequest) -> HttpResponse:
    """Send an own header."""
    return HttpResponse("x", headers={"Cache-Control": "private"})


def look(request: HttpRequest) -> HttpResponse:
    """Look around."""
    _Django.serving.look()
    return HttpResponse("x")


charts = [path("icd10", patient), path("30-day-readmission", patient)]
urlpatterns = [
    path("patients/<str:patient_id>", patient),
    path("patients/<str:mrn>/", include(charts)),
    path("broken", broken),
    path("broken-async", broken_async),
    path("gone", gone),
    path("stream", stream),
    path("unrecorded", unrecorded),
    path("own", own),
    path("look", look),
]
