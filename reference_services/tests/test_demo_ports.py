"""Ports kept for servers: theirs alone, whoever else asks for a port meanwhile."""

from __future__ import annotations

import socket
import sys
from contextlib import ExitStack

import pytest

from reference_services.demo.ports import reserved_ports

RESERVED, ASKED = 300, 4000


def given() -> set[int]:
    """Ask for any port, many times; return those that the kernel gave."""
    with ExitStack() as several:
        servers = (socket.create_server(("127.0.0.1", 0)) for _ in range(ASKED))
        ports = set()
        for number, server in enumerate(servers):
            several.enter_context(server)
            ports.add(server.getsockname()[1])
            if number % 200 == 0:
                several.close()
        return ports


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lets a server listen on the address of a bound socket"
)
def test_nobody_is_given_a_reserved_port() -> None:
    """Of thousands who ask for any port none gets one; once they are free again, some do."""
    with reserved_ports(RESERVED) as ports:
        assert len(set(ports)) == RESERVED
        assert not given() & set(ports)
    assert given() & set(ports)


def test_a_server_listens_where_a_port_is_reserved() -> None:
    """Connections are refused before it listens, answered while it does, and refused again after."""
    with reserved_ports(1) as (port,):
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            with (
                socket.create_server(("127.0.0.1", port)) as server,
                socket.create_connection(("127.0.0.1", port), timeout=5) as client,
            ):
                connection, _ = server.accept()
                with connection:
                    assert connection.getpeername() == client.getsockname()
