"""Starts a service under gunicorn, with what the environment says."""

from __future__ import annotations

import os
from typing import NoReturn

from healthobs import gunicorn
from reference_services._kit.settings import ServiceInfo, ServiceSettings


def launch(info: ServiceInfo, app_uri: str) -> NoReturn:
    """Replace this process by gunicorn serving `app_uri`.

    Args:
        info: The service.
        app_uri: ``package.module:create_app()``.
    """
    settings = ServiceSettings.from_env(info)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    gunicorn.serve(
        app_uri,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        threads=settings.threads,
        ops_port=settings.ops_port,
        environ=os.environ,
    )
