"""Ports of the loopback address, kept for the servers that are to listen on them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Yield `count` ports of 127.0.0.1; until the end of the block nobody is given one who asks for any port.

    A port that was free a moment ago may be somebody's by the time that a server binds it, and what then
    answers there is a stranger. So a bound socket that does not listen keeps each port: the server shares
    it, because both set SO_REUSEADDR, and while no server listens connections are refused.
    Only Linux shares an address like that (ip(7), socket(7)); elsewhere the ports are free, but not kept.
    """
    with ExitStack() as kept:
        sockets = [kept.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        ports: list[int] = [each.getsockname()[1] for each in sockets]
        if sys.platform != "linux":
            kept.close()
        yield ports
