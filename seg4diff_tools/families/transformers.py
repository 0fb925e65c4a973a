"""The transformer of a backbone or a pipeline, and the lock that serializes threads."""

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from seg4diff_tools.errors import RecordingError
from seg4diff_tools.families._private import is_computing, unwrapped

PATIENCE = 3.0
"""Seconds without computation by the lock's holder after which a waiting thread gives up."""


def transformer_of(model: Any) -> nn.Module:
    """Return the transformer of a backbone or a pipeline, or the transformer itself, without torch.compile's wrap."""
    return unwrapped(getattr(model, "transformer", model))


class ModelLock:
    """Reentrant lock of one model; a thread holds it while it runs or records the model."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._uses: list[str] = []
        self._thread: threading.Thread | None = None
        self._entered: list[AbstractContextManager] = []

    def acquire(self, timeout: float = -1, use: str = "a forward") -> bool:
        """Acquire the lock within `timeout` seconds (-1: no limit); return whether it was acquired."""
        if not self._lock.acquire(timeout=timeout):
            return False
        self._uses.append(use)
        self._thread = threading.current_thread()
        return True

    def release(self) -> None:
        """Release the lock."""
        self._uses.pop()
        if not self._uses:
            self._thread = None
        self._lock.release()

    @contextmanager
    def hold(self, use: str) -> Iterator[None]:
        """Hold the lock inside the `with`; wait only while its holder computes.

        Args:
            use: purpose, for the error of waiting threads.

        Raises:
            RecordingError: another thread holds the lock and has computed nothing for `PATIENCE` seconds.
        """
        since = time.monotonic()
        while not self.acquire(0.05, use):
            thread, now = self._thread, time.monotonic()
            if thread is None or is_computing(thread.ident or 0):
                since = now
            elif now - since > PATIENCE:
                raise RecordingError(
                    f"expected a free model for {use} in thread {threading.current_thread().name!r}, got one that "
                    f"{self._uses[0]} holds in thread {thread.name!r}: leave that `with` first, or run both in one "
                    f"thread"
                )
        try:
            yield
        finally:
            self.release()

    def __enter__(self) -> None:
        held = self.hold("a forward")
        held.__enter__()
        self._entered.append(held)

    def __exit__(self, *exception: Any) -> None:  # noqa: PYI036 - handed on to another `__exit__`, whose types differ
        self._entered.pop().__exit__(*exception)


def model_lock(model: Any) -> ModelLock:
    """Return the lock that a thread holds while it runs or records a model (backbone, pipeline or transformer)."""
    return _LOCKS.setdefault(transformer_of(model), ModelLock())


_LOCKS: weakref.WeakKeyDictionary[nn.Module, ModelLock] = weakref.WeakKeyDictionary()
