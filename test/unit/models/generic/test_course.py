"""A call that stops after every step: who runs, what comes out, and that no thread is left."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator

import pytest
import torch

from safelight.models.generic.course import Bar, Course


def left() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "safelight-sample"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert left() == []


def counting(seen: list[str], name: str = "", steps: int = 3) -> Course:
    def work(course: Course) -> str:
        seen.append(f"{name}encode")
        course.begin(steps)
        for step in range(steps):
            seen.append(f"{name}{step}")
            course.keep(torch.full((1,), float(step)))
            course.step()
        seen.append(f"{name}decode")
        return "made"

    return Course(work)


def test_it_runs_from_stop_to_stop() -> None:
    seen: list[str] = []
    course = counting(seen)
    assert seen == []
    for expected in ("encode", "0", "1", "2"):
        course.resume()
        assert seen[-1] == expected
        assert not course.ended
    assert (course.total, course.done) == (3, 3)
    assert course.latents is not None
    assert course.latents.item() == 2
    course.resume()
    assert (seen[-1], course.ended, course.result) == ("decode", True, "made")
    course.resume()
    assert seen.count("decode") == 1


def test_only_one_runs_at_a_time() -> None:
    """Two courses that take turns write as if they were one thread."""
    seen: list[str] = []
    first, second = counting(seen, "a"), counting(seen, "b")
    for _ in range(5):
        first.resume()
        second.resume()
    parts = ("encode", "0", "1", "2", "decode")
    assert seen == [f"{name}{part}" for part in parts for name in "ab"]


def test_closing_ends_it_where_it_is() -> None:
    seen: list[str] = []
    course = counting(seen)
    course.resume()
    course.resume()
    assert len(left()) == 1
    course.close()
    assert course.ended
    assert seen == ["encode", "0"]
    course.close()


def test_closing_what_was_never_begun() -> None:
    course = counting([])
    course.close()
    course.resume()
    assert course.result is None


def test_closing_passes_what_catches_exceptions_and_runs_what_cleans_up() -> None:
    seen: list[str] = []

    def work(course: Course) -> None:
        try:
            course.begin(1)
        except Exception:  # noqa: BLE001
            seen.append("caught")
        finally:
            seen.append("cleaned up")

    course = Course(work)
    course.resume()
    course.close()
    assert seen == ["cleaned up"]


def test_what_it_raises_comes_out_of_resume_every_time() -> None:
    def work(course: Course) -> None:
        course.begin(2)
        course.keep(torch.zeros(3))
        raise ZeroDivisionError("here")

    course = Course(work)
    course.resume()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="here"):
            course.resume()
    assert course.latents is None


class Odd(Exception):
    """One that cannot be copied."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_what_it_raised_keeps_nobody_alive() -> None:
    """The caller's frames have the other samples of the batch."""

    def work(course: Course) -> None:
        raise Odd(1, 2)

    class Mate:
        pass

    def call() -> weakref.ref[Mate]:
        mate = Mate()
        with pytest.raises(Odd):
            course.resume()
        return weakref.ref(mate)

    course = Course(work)
    assert call()() is None
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        course.resume()


def test_it_runs_in_inference_mode() -> None:
    assert not torch.is_inference_mode_enabled()
    course = Course(lambda course: torch.is_inference_mode_enabled())
    course.resume()
    assert course.result is True


def test_steps_beyond_the_total_do_not_stop_it() -> None:
    def work(course: Course) -> None:
        course.begin(2)
        course.begin(9)  # of a second loop
        for _ in range(5):
            course.step()

    course = Course(work)
    stops = 0
    while not course.ended:
        course.resume()
        stops += 1
    assert (stops, course.total, course.done) == (4, 2, 2)


def test_a_bar_tells_the_end_of_every_round() -> None:
    done: list[int] = []
    rounds = []
    for item in Bar(["a", "b"], done.append):
        rounds.append((item, len(done)))
    assert rounds == [("a", 0), ("b", 1)]
    assert done == [1, 1]
    with Bar(None, done.append) as bar:
        bar.set_postfix(loss=1)
        bar.update(2)
    assert done == [1, 1, 2]


def test_a_hundred_closed_courses_leave_nothing() -> None:
    before = threading.active_count()
    courses = [counting([]) for _ in range(100)]
    for course in courses:
        course.resume()
    assert threading.active_count() == before + 100
    for course in courses:
        course.close()
    assert threading.active_count() == before
