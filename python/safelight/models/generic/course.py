"""A pipeline's call that stops after every step: a thread that runs only while its caller waits.

Whoever holds the baton runs, the rank or one of its samples' threads; never two of them. A course
that is not needed any more is closed: the stop it waits in raises `Released` through the
pipeline's frames, so that its thread ends.
"""

from __future__ import annotations

import contextvars
import copy
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


class Released(BaseException):
    """Nobody wants the result any more. No `except Exception` of a pipeline may stop it."""


class Course:
    """One run of `work(self)`, which says where it may stop.

    The caller's methods are `resume` and `close`, those of the work `begin`, `step` and `keep`.
    """

    def __init__(self, work: Callable[[Course], Any]) -> None:
        self.total = 1
        """Steps in all, as the work says at its `begin`."""
        self.done = 0
        """Steps the work has done; never more than `total`."""
        self.latents: torch.Tensor | None = None
        """As the last step left them, if the work shows them."""
        self.result: Any = None
        self.ended = False
        self._failure: BaseException | None = None
        """Until it is raised: kept, its traceback would keep the samples of its batch."""
        self._again: BaseException | None = None
        """A copy of it that has no traceback."""
        self._begun = self._closing = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        # Daemonic: a rank that ends waits for nobody.
        self._thread = threading.Thread(
            target=context.run, args=(self._run, work), name="safelight-sample", daemon=True
        )

    # --------------------------------------------------------------------- in the caller's thread

    def resume(self) -> None:
        """Run to the next stop, or to the end; raises what the work raised, now and ever after."""
        if not self.ended:
            self._pass()
        failure, self._failure = self._failure, None
        if failure is None and self._again is not None:
            failure = copy.copy(self._again)
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # its traceback has this frame

    def close(self) -> None:
        """End the work where it is. Does nothing if it has ended or was never begun."""
        if self._thread.ident is not None and not self.ended:
            self._closing = True
            self._pass()
        self.ended = True

    def _pass(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self.ended:
            self._thread.join()

    # ----------------------------------------------------------------------- in the work's thread

    def _run(self, work: Callable[[Course], Any]) -> None:
        try:
            # Of a thread, not of the process.
            with torch.inference_mode():
                self.result = work(self)
        except Released:
            pass
        except BaseException as failure:  # noqa: BLE001 (the caller raises it)
            _forget_locals(failure)
            self._failure, self._again = failure, _copied(failure)
            self.latents = None
        self.ended = True
        self._stopped.release()

    def _stop(self) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._closing:
            raise Released

    def begin(self, total: int) -> None:
        """The steps follow, `total` of them. Of several loops the first is counted."""
        if not self._begun:
            self._begun, self.total = True, total
            self._stop()

    def step(self, count: int = 1) -> None:
        """So many steps are done."""
        if self.done < self.total:
            self.done = min(self.done + count, self.total)
            self._stop()

    def keep(self, latents: object) -> None:
        """Show the latents as they are now."""
        if isinstance(latents, torch.Tensor):
            self.latents = latents


def _forget_locals(failure: BaseException | None) -> None:
    """Free what the frames that raised it hold: a failure that is kept would keep activations."""
    while failure is not None:
        traceback.clear_frames(failure.__traceback__)
        failure = failure.__cause__ or failure.__context__


def _copied(failure: BaseException) -> BaseException:
    """The same failure, never raised."""
    try:
        return copy.copy(failure)
    except TypeError:  # it is made of other arguments than it says
        return RuntimeError(f"{type(failure).__name__}: {failure}")


class Bar:
    """What a pipeline takes for its progress bar; `step` hears of every step."""

    def __init__(self, iterable: Iterable[Any] | None, step: Callable[[int], None]) -> None:
        self._iterable = iterable
        self._step = step

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *raised: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        assert self._iterable is not None, "a progress bar of a total is not looped over"
        for item in self._iterable:
            yield item
            self._step(1)

    def update(self, count: int = 1) -> None:
        self._step(count)

    def close(self) -> None:
        pass

    def set_description(self, *text: object, **options: object) -> None:
        pass

    set_postfix = refresh = set_description
