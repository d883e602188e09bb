"""What clients make up themselves has no natural length: names of fields, of models, of users."""

from __future__ import annotations

import httpx2
import pytest

from safelight.entrypoint.envelope import MAX_MESSAGE
from safelight.entrypoint.openai.parsing import MAX_IDENTIFIER, MAX_UNKNOWN
from safelight.fields import MAX_SEEN

VIDEOS, IMAGES = "/v1/videos", "/v1/images/generations"


def test_unknown_fields_are_counted_when_they_are_many(client: httpx2.Client) -> None:
    more = {f"made_up_{number}": 1 for number in range(MAX_UNKNOWN + 7)}
    answer = client.post(VIDEOS, json={"prompt": "x"} | more)
    warnings = answer.json()["warnings"]
    assert answer.status_code == 200 and len(warnings) == MAX_UNKNOWN + 1
    assert "'made_up_0'" in warnings[0]
    assert warnings[-1].startswith("7 more fields")


def test_a_long_unknown_field_is_named_in_part(client: httpx2.Client) -> None:
    answer = client.post(VIDEOS, json={"prompt": "x", "y" * 9000: 1})
    (warning,) = answer.json()["warnings"]
    assert "y" * MAX_SEEN in warning and len(warning) < 2 * MAX_SEEN


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_an_identifier_is_kept_with_the_job_and_must_be_short(
    client: httpx2.Client, field: str
) -> None:
    fits = client.post(IMAGES, json={"prompt": "x", field: "u" * MAX_IDENTIFIER})
    assert fits.json()["safety_identifier"] == "u" * MAX_IDENTIFIER
    long = client.post(IMAGES, json={"prompt": "x", field: "u" * (MAX_IDENTIFIER + 1)})
    assert (long.status_code, long.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("field", ["model", "background", "output_format"])
def test_an_error_does_not_send_back_all_that_it_is_about(
    client: httpx2.Client, field: str
) -> None:
    answer = client.post(IMAGES, json={"prompt": "x", field: "z" * 9000})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if field == "model" else 400, field)
    assert len(error["message"]) == MAX_MESSAGE
