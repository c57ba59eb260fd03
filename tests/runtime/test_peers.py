"""A process that dies, or does not come: the others say which, and end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ports import free_address

import jaxllm
from jaxllm.runtime import peers, processes

PROGRAM = """
import os, sys
import numpy as np
from jaxllm import cli
from jaxllm.runtime import processes
from jaxllm.errors import InputError
victim, processes.PATIENCE = sys.argv[1], float(sys.argv[2])
index = os.environ[processes.INDEX]
with cli._logging_to_stderr(), processes.joined(2):
    numbers = processes.gather(np.array([2**40 + int(index), -1]))
    print(numbers.tolist(), processes.gather(0.1).tolist(), flush=True)
    for step in range(10**6):
        processes.gather(step)
        if index == victim and step == 3:
            os.kill(os.getpid(), 9)
"""


def start(index, address, victim, patience=100.0):
    environment = {
        **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        "PYTHONPATH": str(Path(jaxllm.__file__).parents[1]),
        processes.ADDRESS: address,
        processes.COUNT: "2",
        processes.INDEX: str(index),
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(victim), str(patience)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.fixture
def address():
    return free_address()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_of_a_killed_process_says_which_it_was(address, victim):
    both = [start(index, address, victim) for index in (0, 1)]
    survivor = both[1 - victim]
    try:
        # JAX' own end of it: an abort with a stack trace, at once for the first process, else
        # after 100 s.
        out, err = survivor.communicate(timeout=600)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[victim].returncode == -signal.SIGKILL
    assert survivor.returncode == 1
    assert "Traceback" not in err
    assert "stack trace" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("jaxllm: "))
    assert message.startswith(f"jaxllm: error: process {victim} (pid {both[victim].pid} on ")
    assert "is gone" in message
    assert "Start the same command again in all processes" in message
    first = out.splitlines()[0] if "]]" in out.splitlines()[0] else out.splitlines()[1]
    assert first == f"{[[2**40, -1], [2**40 + 1, -1]]} [0.1, 0.1]"


def test_a_process_that_does_not_come_is_waited_for_and_then_told(address):
    alone = start(0, address, victim=9, patience=2.0)
    try:
        _, err = alone.communicate(timeout=600)
    finally:
        alone.kill()
        alone.communicate()
    assert alone.returncode == 2
    assert f"waiting for 2 processes (the first at {address}), 1 s more at most" in err
    assert f"error: 2 processes (the first at {address}) have not found each other in 2 s" in err
    assert "Traceback" not in err
    assert processes.PATIENCE == 60


class Table:
    """`gather` for threads."""

    def __init__(self, count):
        self.barrier = threading.Barrier(count)
        self.values = [None] * count

    def gather(self, index, value):
        self.values[index] = value
        self.barrier.wait()
        return np.stack(self.values)


@pytest.fixture
def three(monkeypatch):
    """Three Peers, as if each were a process, and what ended which: [(message, status), …]."""
    ended = []
    monkeypatch.setattr(peers, "_end", lambda message, status: ended.append((message, status)))
    monkeypatch.setattr(peers, "GRACE", 0.0)
    monkeypatch.setattr(peers, "_keep_connections", lambda: None)
    table, made = Table(3), {}

    def make(index):
        def gather(value):
            return table.gather(index, value)

        made[index] = peers.Peers(index, "localhost", gather)

    threads = [threading.Thread(target=make, args=[index]) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield [made[index] for index in range(3)], ended
    links = [link for one in made.values() for link in one._links.values()]
    for link in links:
        with contextlib.suppress(OSError):  # the other end is closed already
            link.shutdown(socket.SHUT_RDWR)
    for thread in threading.enumerate():
        if thread.name == "peers":
            thread.join()
    for link in links:
        link.close()


def hang_up(one):
    """What the others see of a process that ends."""
    for link in one._links.values():
        link.shutdown(socket.SHUT_WR)


def wait_for(condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_hear_of_one_that_is_gone(three):
    made, ended = three
    hang_up(made[2])
    wait_for(lambda: len(ended) == 3)  # its own watch hears of it, too, as it lives
    assert {status for _, status in ended} == {1}
    assert all(m.startswith(f"process 2 (pid {os.getpid()} on ") for m, _ in ended)


def test_one_that_says_it_is_done_is_not_missed(three):
    made, ended = three
    made[1].leave(failed=False)
    hang_up(made[1])
    wait_for(lambda: made[0]._done == {1})
    hang_up(made[2])
    wait_for(lambda: ended)
    assert "process 2" in ended[0][0]  # the next in the same thread: nothing was said of 1


def test_one_that_stops_is_told_to_those_that_do_not_know_why(three):
    made, ended = three
    made[2]._leaving = True  # it says the reason itself
    made[1].leave(failed=True)
    wait_for(lambda: 1 in made[2]._done)
    wait_for(lambda: ended)
    assert ended == [("process 1 stopped; it says why", 2)]
