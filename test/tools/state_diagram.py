"""Draws `docs/states.md` from `safelight.request.TRANSITIONS`.

Run in `test/`: `python -m tools.state_diagram [--write]`.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict

from safelight.request import TRANSITIONS, Event, State
from tools import documents

NAME = "states.md"

_INTRODUCTION = """\
# States of a sample

Generated from `TRANSITIONS` in `python/safelight/request.py` by `make docs`; do not edit.

A job's outputs are samples, each with its own state. `advance(state, event)` is the only way from
one to the next: a pair that the table leaves empty raises `IllegalTransition` and changes nothing.
"""


def document() -> str:
    return "\n\n".join([_INTRODUCTION.strip(), diagram(), _events(), _table()]) + "\n"


def diagram() -> str:
    """A Mermaid state diagram: one arrow between two states, with the events that take it."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {State.QUEUED}"]
    for (source, target), events in _arrows().items():
        lines.append(f"    {source} --> {target}: {', '.join(events)}")
    lines += [f"    {state} --> [*]" for state in State if state.final]
    return "\n".join([*lines, "```"])


def _arrows() -> dict[tuple[State, State], list[Event]]:
    arrows: dict[tuple[State, State], list[Event]] = defaultdict(list)
    for source, moves in TRANSITIONS.items():
        for event, target in moves.items():
            arrows[source, target].append(event)
    return arrows


def _events() -> str:
    rows = [(f"`{event}`", meaning) for event, meaning in meanings().items()]
    return "## Events\n\n" + documents.table(("event", "meaning"), *rows)


def meanings() -> dict[str, str]:
    """What the comments beside the members of `Event` say."""
    return dict(re.findall(r'= "(\w+)"  # (.+)', inspect.getsource(Event)))


def _table() -> str:
    heading = ("in state", *(f"`{event}`" for event in Event))
    rows = [
        (f"**{state}**", *(TRANSITIONS[state].get(event, "") for event in Event)) for state in State
    ]
    return "## Every pair\n\n" + documents.table(heading, *rows)


if __name__ == "__main__":
    documents.main(NAME, document)
