from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.errors import InvalidRequest, Overloaded
from safelight.manager.admission import Admission, wait_for


def test_places_are_held_while_a_job_is_committed_and_given_back() -> None:
    admission = Admission(2)
    with admission.entering(2, [], 0.0):
        with pytest.raises(Overloaded) as caught, admission.entering(1, [], 0.0):
            pass
        assert caught.value.retry_after_s == 1
    with pytest.raises(RuntimeError), admission.entering(2, [], 0.0):
        raise RuntimeError
    with admission.entering(2, [], 0.0):
        pass


def test_what_never_fits_is_not_told_to_come_back() -> None:
    with pytest.raises(InvalidRequest) as caught, Admission(2).entering(3, [], 0.0):
        pass
    assert caught.value.param == "n"


def test_the_wait_is_until_enough_samples_have_ended() -> None:
    etas = [9.0, 1.0, None, 4.0]
    assert [wait_for(k, etas, backlog=20.0) for k in (1, 2, 3, 4, 9)] == [1.0, 4.0, 9.0, 20.0, 20.0]


@given(
    st.lists(st.none() | st.floats(0, 1e6), max_size=8),
    st.floats(0, 1e6),
    st.integers(1, 8),
)
def test_a_refusal_always_names_1_to_60_seconds(
    etas: list[float | None], backlog: float, n: int
) -> None:
    try:
        with Admission(8).entering(n, etas, backlog):
            assert len(etas) + n <= 8
    except Overloaded as refusal:
        assert len(etas) + n > 8
        assert 1 <= refusal.retry_after_s <= 60
