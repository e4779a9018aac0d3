"""ASGI 3 (FastAPI, Starlette and others): the same exchange and endpoints as under WSGI.

Wrap any application in `Middleware`; a Starlette or FastAPI application, which has to stay what it is for its
decorators, takes `init_app` instead. Lifespan and websockets pass through; when the lifespan ends, what is
queued is exported.

Limits: asyncio only. Websockets leave no telemetry.
"""

from healthobs.asgi.middleware import ASGIApp, Message, Middleware, Receive, Scope, Send, init_app, remove_app

__all__ = ["ASGIApp", "Message", "Middleware", "Receive", "Scope", "Send", "init_app", "remove_app"]
