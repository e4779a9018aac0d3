"""A service's life under a server: an ops port of its own, a drain before the stop, a flush at the end.

`healthobs.gunicorn` wires this up for gunicorn; for servers without hooks there is `start`.

Limits: POSIX signals; a server whose own SIGTERM handling is not a Python signal handler cannot be deferred.
"""

from healthobs.lifecycle.drain import Drain, forget_alarm
from healthobs.lifecycle.keeper import Keeper
from healthobs.lifecycle.ops import OpsServer, bind_ops
from healthobs.lifecycle.single import start

__all__ = ["Drain", "Keeper", "OpsServer", "bind_ops", "forget_alarm", "start"]
