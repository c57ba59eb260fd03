"""Items of an iterator, made in a thread ahead of whoever asks for them."""

import atexit
import queue
import threading
from collections.abc import Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetched(source: Iterator[Item], ahead: int) -> Iterator[Item]:
    """`source`, run in a thread that stays at most `ahead` items in front."""
    free = threading.Semaphore(ahead)
    stop = threading.Event()
    ready: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            while free.acquire() and not stop.is_set():
                ready.put((next(source), None))
        except BaseException as error:  # also StopIteration: the consumer must not wait for ever
            ready.put((None, error))

    def consume() -> Iterator[Item]:
        thread = threading.Thread(target=work, name="jaxllm-loader", daemon=True)

        def end() -> None:
            if not stop.is_set():
                stop.set()
                free.release()
                thread.join()
                atexit.unregister(end)

        atexit.register(end)  # an iterator still open then is closed too late to join a thread
        thread.start()
        try:
            while True:
                item, error = ready.get()
                if error is not None:
                    raise error
                free.release()
                yield item
        finally:
            end()

    return consume()
