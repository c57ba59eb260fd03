"""Tokenizing in threads, ahead of whoever takes the tokens."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Call = TypeVar("Call")
Tokens = TypeVar("Tokens")


def tokenized(
    calls: Iterable[Call],
    tokenize: Callable[[Call], Tokens],
    take: Callable[[Call, Tokens], None],
    *,
    workers: int,
) -> None:
    """`take(call, tokenize(call))` for each of `calls`, in their order.

    `tokenize` runs in threads, the rest in the caller's: processes could not be forked once JAX has
    started threads of its own, and the tokenizer runs outside the interpreter lock. In memory are
    two calls a thread.

    workers: threads; 0 = one a core.
    """
    workers = workers or os.cpu_count() or 1
    pending: deque[tuple[Call, Future[Tokens]]] = deque()

    def take_first() -> None:
        call, tokens = pending.popleft()
        take(call, tokens.result())

    with _one_thread_a_call(), ThreadPoolExecutor(workers, "tokenize") as pool:
        try:
            for call in calls:
                pending.append((call, pool.submit(tokenize, call)))
                if len(pending) > 2 * workers:
                    take_first()
            while pending:
                take_first()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """Keeps the tokenizer from starting threads of its own under each of ours."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
