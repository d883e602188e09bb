"""The one table of states, and the page drawn from it."""

from __future__ import annotations

import itertools

import pytest

from safelight.errors import IllegalTransition
from safelight.request import TRANSITIONS, Event, State, advance
from tools import documents, state_diagram


def test_the_page_is_current() -> None:
    page = (documents.DOCS / state_diagram.NAME).read_text("utf-8")
    assert page == state_diagram.document(), "run: make docs"


def test_every_event_is_explained() -> None:
    assert set(state_diagram.meanings()) == set(Event)


def drawn() -> dict[tuple[str, str], str]:
    """(state, event) -> next state, as the page's diagram has it."""
    page = (documents.DOCS / state_diagram.NAME).read_text("utf-8")
    found = {}
    for line in page.splitlines():
        if " --> " in line and ": " in line:
            source, _, rest = line.strip().partition(" --> ")
            target, _, events = rest.partition(": ")
            found |= {(source, event): target for event in events.split(", ")}
    return found


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_does_what_the_page_says(state: State, event: Event) -> None:
    target = drawn().get((state, event))
    if target is None:
        with pytest.raises(IllegalTransition, match=f"{state} cannot take '{event}'"):
            advance(state, event)
    else:
        assert advance(state, event) == target


def test_what_is_final_stays() -> None:
    assert {s for s in State if s.final} == {State.COMPLETED, State.FAILED, State.CANCELLED}
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", [state for state in State if not state.final])
def test_everything_unfinished_can_fail_and_be_cancelled(state: State) -> None:
    assert advance(state, Event.FAIL) is State.FAILED
    assert advance(state, Event.CANCEL) is State.CANCELLED


@pytest.mark.parametrize("state", [s for s in State if not s.final and s is not State.QUEUED])
def test_what_ranks_held_starts_again(state: State) -> None:
    assert advance(state, Event.LOST) is State.QUEUED


def test_the_straight_way() -> None:
    state = State.QUEUED
    way = (Event.START, Event.ENCODED, Event.STEP, Event.LAST_STEP, Event.DECODED, Event.WRITTEN)
    for event in way:
        state = advance(state, event)
    assert state is State.COMPLETED
