"""A port for processes that find each other on this machine."""

import contextlib
import os
import socket


def free_address():
    """localhost and a port below those that the system hands out to whoever asks for any, so that
    no one takes it before the process that is told of it listens; each process begins elsewhere.
    """
    for port in range(10_000 + os.getpid() % 20_000, 32_000):
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return f"localhost:{port}"
    raise OSError("no port is free")
