"""Real servers for the tests marked `server`: start one on free ports, talk to it, stop it."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self, TypeVar, cast

import urllib3
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from reference_services.demo.ports import reserved_ports

START_SECONDS = 30.0
_T = TypeVar("_T")


@dataclass(slots=True)
class Server:
    """One running server."""

    process: subprocess.Popen[bytes]
    port: int
    ops_port: int
    log: Path

    def get(self, path: str, *, ops: bool = False, timeout: float = 5.0) -> urllib3.BaseHTTPResponse:
        """Ask once, on a connection of its own."""
        port = self.ops_port if ops else self.port
        with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
            return pool.request("GET", f"http://127.0.0.1:{port}{path}", headers={"Connection": "close"})

    def wait_ready(self) -> None:
        """Wait until it is ready."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if self.get("/readiness").status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not get ready")

    def children(self) -> set[int]:
        """Return the pids of the workers."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(pid) for task in tasks for pid in task.read_text().split()}

    def term(self) -> None:
        """Send SIGTERM to the master."""
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def serving(directory: Path, line: list[str], *, ready: bool = True, **environ: str) -> Iterator[Server]:
    """Run `line` in `directory`; in it and in `environ`, PORT and OPS stand for two free ports."""
    with reserved_ports(2) as (port, ops_port):
        ports = {"PORT": str(port), "OPS": str(ops_port)}
        log = directory / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *(ports.get(part, part.replace(":PORT", f":{port}")) for part in line)],
                cwd=directory,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]),
                    **{name: ports.get(value, value) for name, value in environ.items()},
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Server(process, port, ops_port, log)
        try:
            if ready:
                server.wait_ready()
            yield server
        except AssertionError as exc:
            exc.add_note(f"the server's log:\n{log.read_text(errors='replace')}")
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(15)


@dataclass
class Clients:
    """Clients behind a load balancer: they send while readiness says so, a new connection for each request."""

    server: Server
    #: Whether a probe that gets no answer says no, too; else only the answer does.
    wary: bool = True
    ready: bool = True
    sent: int = 0
    errors: list[str] = field(default_factory=list)
    traces: set[str] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def probe(self) -> None:
        """Ask for readiness every half second: longer than a request, so that every client meets a sudden stop."""
        while not self.stop.wait(0.5):
            try:
                self.ready = self.server.get("/readiness", timeout=2.0).status == 200
            except urllib3.exceptions.HTTPError:
                if self.wary:
                    self.ready = False

    def send(self) -> None:
        """Send one request after the other."""
        while not self.stop.is_set():
            if not self.ready:
                time.sleep(0.02)
                continue
            trace = os.urandom(16).hex()
            headers = {"traceparent": f"00-{trace}-{'0' * 15}1-01", "Connection": "close"}
            try:
                with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
                    url = f"http://127.0.0.1:{self.server.port}/slow"
                    answer = pool.request("GET", url, headers=headers)
                with self._lock:
                    self.sent += 1
                    self.traces.add(trace)
                if answer.status != 200:
                    self.errors.append(str(answer.status))
            except urllib3.exceptions.HTTPError as exc:
                self.errors.append(type(exc).__name__)
                if self.server.process.poll() is not None:
                    return


def stop_under_load(server: Server, *, wary: bool = True) -> tuple[Clients, float]:
    """Stop the server while 16 clients send; return what they saw, and how long it took."""
    clients = Clients(server, wary)
    threads = [threading.Thread(target=clients.probe)]
    threads += [threading.Thread(target=clients.send) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    began = time.monotonic()
    server.term()
    server.process.wait(25)
    took = time.monotonic() - began
    clients.stop.set()
    for thread in threads:
        thread.join()
    return clients, took


def until(condition: Callable[[], _T]) -> _T:
    """Return what `condition` gives once it is true."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


class Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and remembers the ids of the spans."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.spans: dict[str, str] = {}
        self._ports: defaultdict[str, set[int]] = defaultdict(set)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()

    def took(self, span: Span, port: int) -> None:
        """Remember a span, and the client's port of the connection that it came on."""
        self.spans[span.trace_id.hex()] = span.name
        self._ports[span.name].add(port)

    def ports_of(self, name: str) -> set[int]:
        """Return the ports of the connections on which spans of this name came."""
        return self._ports[name]


class _Take(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, so that a shared one shows

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    cast("Collector", self.server).took(span, self.client_address[1])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
