"""Which models are loaded: pure decisions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from safelight.manager.residency import Model, Residency, Standing, Verb

LOAD, DRAIN, UNLOAD = Verb.LOAD, Verb.DRAIN, Verb.UNLOAD


def residency(*names: str, most: int | None = None, room: int | None = None) -> Residency:
    """Models of 10 bytes; `room` bytes in all."""

    def left() -> int | None:
        held = sum(m.standing is not Standing.LOADING for m in present(made))
        return None if room is None else room - 10 * held

    made = Residency([Model(name, 10) for name in names], most=most, room=left)
    return made


def present(made: Residency) -> list[Model]:
    away = (Standing.UNLOADED, Standing.FAILED)
    return [model for model in made.models.values() if model.standing not in away]


def standings(made: Residency) -> dict[str, str]:
    return {name: str(model.standing) for name, model in made.models.items()}


def test_a_model_is_loaded_when_it_is_first_asked_for() -> None:
    made = residency("a")
    assert made.want("a", 1.0) == [(LOAD, "a")]
    assert made.want("a", 2.0) == []
    assert made.loaded("a") == []
    assert made.want("a", 3.0) == []


def test_the_least_recently_used_makes_room() -> None:
    made = residency("a", "b", "c", most=2)
    for now, name in enumerate("ab"):
        made.want(name, now)
        made.loaded(name)
    made.want("a", 5.0)
    assert made.want("c", 6.0) == [(DRAIN, "b")]
    assert made.drained("b") == [(UNLOAD, "b")]
    assert made.gone("b") == [(LOAD, "c")]
    assert standings(made) == {"a": "loaded", "b": "unloaded", "c": "loading"}


def test_it_comes_back_when_it_was_asked_for_meanwhile() -> None:
    made = residency("a", "b", most=1)
    made.want("a", 0.0)
    made.loaded("a")
    made.want("b", 1.0)
    assert made.want("a", 2.0) == []  # it drains: this request waits
    made.drained("a")
    assert made.gone("a") == [(LOAD, "b")]
    assert made.loaded("b") == [(DRAIN, "b")]  # and at once makes room: both get their turn
    made.drained("b")
    assert made.gone("b") == [(LOAD, "a")]


def test_memory_counts_what_is_still_being_loaded() -> None:
    made = residency("a", "b", "c", room=20)
    assert made.want("a", 0.0) == [(LOAD, "a")]
    assert made.want("b", 1.0) == [(LOAD, "b")]
    assert made.want("c", 2.0) == []
    assert made.loaded("a") == [(DRAIN, "a")]


def test_one_that_never_fits_is_tried_alone() -> None:
    made = residency("a", room=5)
    assert made.want("a", 0.0) == [(LOAD, "a")]


def test_a_failure_is_tried_again_when_it_is_next_asked_for() -> None:
    made = residency("a")
    made.want("a", 0.0)
    made.failed("a", "broken")
    made.gone("a")
    assert made.models["a"].standing is Standing.FAILED
    assert made.models["a"].detail == "broken"
    assert made.want("a", 1.0) == [(LOAD, "a")]


def test_unloading_one_that_is_not_loaded_does_nothing() -> None:
    made = residency("a")
    assert made.unload("a") == []
    assert made.drained("a") == []


def test_unloading_one_that_somebody_waits_for_does_not_forget_them() -> None:
    made = residency("a", "b", most=1)
    made.want("a", 0.0)
    made.loaded("a")
    made.want("b", 1.0)
    assert made.unload("b") == []  # it waits for room
    made.drained("a")
    made.want("a", 2.0)
    assert made.unload("a") == []  # it goes already, and comes back
    assert made.gone("a") == [(LOAD, "b")]
    assert made.loaded("b") == [(DRAIN, "b")]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40), st.integers(1, 3))
def test_whatever_is_asked_for_is_loaded_in_the_end(
    wishes: list[tuple[int, bool]], most: int
) -> None:
    """Never more at once than may be, and nobody waits for ever."""
    made = residency(*"abcd", most=most)
    todo: list[tuple[Verb, str]] = []

    def obey() -> None:
        verb, name = todo.pop(0)
        done = {LOAD: made.loaded, DRAIN: made.drained, UNLOAD: made.gone}[verb]
        todo.extend(done(name))
        assert len(present(made)) <= most

    for now, (which, obeyed) in enumerate(wishes):
        todo.extend(made.want("abcd"[which], float(now)))
        if obeyed and todo:
            obey()
    for _ in range(1000):
        if not todo:
            break
        obey()
    assert todo == []
    assert all(model.wanted is None for model in made.models.values())
