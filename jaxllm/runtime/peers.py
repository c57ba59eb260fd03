"""Notices at once that another process of a run is gone, whatever this one is waiting for.

A process that waits for a dead one in a step gets an exception of any type from Gloo (on jax 0.10.2
a ValueError), none for minutes from NCCL, and ends by an abort of JAX's coordination service after
100 s, or at once where the first process is the dead one. So every process has a connection to the
first: the kernel closes it with its process, and a thread at the other end sees that.
"""

import contextlib
import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

GRACE = 5.0  # seconds: for a process to end by itself; for connections to outlive their process
_CONNECT = 10.0  # seconds
_DONE, _STOPPED, _GONE = "done", "stopped", "gone"  # said of a process, in a line with its number


class Peers:
    """The watch of one process over the others.

    Args:
        index: of this process.
        host: name or address of the first process' host.
        gather: an array of each process, stacked; called in all of them.
    """

    def __init__(self, index: int, host: str, gather: Callable[[np.ndarray], np.ndarray]) -> None:
        self._index = index
        self._links: dict[int, socket.socket] = {}
        self._done: set[int] = set()
        self._leaving = self._failed = False
        self._keeper = _keep_connections() if index == 0 else None
        with _listener() if index == 0 else contextlib.nullcontext() as listener:
            port = 0 if listener is None else listener.getsockname()[1]
            card = f"{port} {secrets.token_hex(8)} pid {os.getpid()} on {socket.gethostname()}"
            cards = [x.decode().split(" ", 2) for x in gather(np.array(card.encode(), "S200"))]
            self._names = [f"process {i} ({about})" for i, (_, _, about) in enumerate(cards)]
            port, secret = int(cards[0][0]), cards[0][1]
            with contextlib.suppress(OSError):  # a firewall between them: then there is no watch
                if listener is None:
                    self._call(host.strip("[]"), port, secret)
                else:
                    self._answer(listener, secret)
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def leave(self, failed: bool) -> None:
        """Tells the others that this process ends by itself."""
        self._leaving, self._failed = True, failed
        self._say(f"{_STOPPED if failed else _DONE} {self._index}")

    def close(self) -> None:
        """Ends what would outlive this process."""
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.communicate()

    # -- connecting ------------------------------------------------------------------------------

    def _call(self, host: str, port: int, secret: str) -> None:
        link = socket.create_connection((host, port), timeout=_CONNECT)
        link.sendall(f"{secret} {self._index}\n".encode())
        self._add(0, link)

    def _answer(self, listener: socket.socket, secret: str) -> None:
        until = time.monotonic() + _CONNECT
        while len(self._links) < len(self._names) - 1:
            listener.settimeout(max(0.01, until - time.monotonic()))
            link, _ = listener.accept()
            link.settimeout(1.0)
            with contextlib.suppress(OSError, ValueError), link.makefile() as file:
                said, index = file.readline().split()
                if said == secret:
                    self._add(int(index), link)

    def _add(self, index: int, link: socket.socket) -> None:
        link.settimeout(None)
        # A host that is switched off closes nothing: after 40 s without an answer it is gone.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._links[index] = link

    # -- watching --------------------------------------------------------------------------------

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for index, link in self._links.items():
                selector.register(link, selectors.EVENT_READ, index)
            rest = dict.fromkeys(self._links, "")
            while selector.get_map():
                for key, _ in selector.select():
                    index, data = key.data, b""
                    with contextlib.suppress(OSError):
                        data = self._links[index].recv(4096)
                    *lines, rest[index] = (rest[index] + data.decode()).split("\n")
                    for line in lines:
                        word, number = line.split()
                        self._hear(word, int(number))
                    if not data:
                        selector.unregister(self._links[index])
                        if index not in self._done:
                            self._hear(_GONE, index)

    def _hear(self, word: str, index: int) -> None:
        if self._index == 0 and word != _DONE:
            self._say(f"{word} {index}")
        self._done.add(index)
        if word == _STOPPED:
            time.sleep(GRACE)  # this process may know why, and say it
            if not self._leaving:
                self._say(f"{_DONE} {self._index}")
                _end(f"process {index} stopped; it says why", status=2)
        if word == _GONE and not self._failed:
            _end(
                f"{self._names[index]} is gone: it was killed, or its host is down. Start the same "
                "command again in all processes: a run goes on from its last snapshot",
                status=1,
            )

    def _say(self, line: str) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(f"{line}\n".encode())


@contextlib.contextmanager
def patience(seconds: float, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Ends this process with a message after so many seconds inside; says what it waits for."""
    over = threading.Event()
    first = min(5.0, seconds / 2)

    def wait() -> None:
        if over.wait(first):
            return
        say(f"waiting for {what}, {seconds - first:.0f} s more at most")
        if not over.wait(seconds - first):
            _end(
                f"{what} have not found each other in {seconds:.0f} s. See which of them has not "
                "started, and what it says; then start all of them again at the same time",
                status=2,
            )

    threading.Thread(target=wait, name="patience", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _end(message: str, status: int) -> NoReturn:
    """Ends this process from any thread, whatever its main thread is waiting for."""
    print(f"jaxllm: error: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _keep_connections() -> subprocess.Popen | None:
    """A process that holds this one's connections for a while after its death.

    JAX aborts the other processes, with a stack trace, as soon as the connection to the first one
    is closed; so they have the time to say what has happened.
    """
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        return None
    connections = []
    for name in os.listdir(descriptors):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(descriptors / name).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    # Not what listens: the next start needs its port.
                    if not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        connections.append(int(name))
    return subprocess.Popen(
        ["/bin/sh", "-c", f"read line; sleep {GRACE}"],
        stdin=subprocess.PIPE,  # ends with this process
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=connections,
    )
