"""What a server offers of a model: tasks and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from fakes.engine_peer import CARD
from fakes.stack import running
from safelight.config import Mode, ModelConfig, build
from safelight.errors import ConfigError, InvalidRequest
from safelight.models.registry import load_card
from safelight.models.served import offered
from safelight.request import Inputs


def card(**settings: Any) -> Any:
    return offered(CARD, ModelConfig(**settings))


@pytest.mark.parametrize(("mode", "task"), [("t2i", "text-to-image"), ("t2v", "text-to-video")])
def test_a_mode_leaves_its_tasks(mode: Mode, task: str) -> None:
    assert card(mode=mode).tasks == (task,)


def test_what_the_mode_leaves_out_is_refused_with_the_reason() -> None:
    with pytest.raises(InvalidRequest, match=re.escape("(it is served with --mode t2i)")):
        card(mode="t2i").task_for("video", Inputs(), None)


def test_over_http_other_endpoints_say_so(tmp_path: Path) -> None:
    with running(tmp_path, card=card(mode="t2i")) as stack:
        refused = httpx2.post(f"{stack.base_url}/v1/videos", json={"prompt": "a"})
        made = httpx2.post(f"{stack.base_url}/v1/images/generations", json={"prompt": "a"})
    assert (refused.status_code, made.status_code) == (400, 200)
    assert "(it is served with --mode t2i)" in refused.json()["error"]["message"]


def test_a_mode_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="lab/tiny cannot do image-to-image or inpainting"):
        card(mode="edit")


def test_defaults_are_of_every_task_and_typed() -> None:
    own = {"text-to-image": {"num_inference_steps": 30}}
    special = msgspec.structs.replace(CARD, task_defaults=own)
    values = {"num_inference_steps": "6", "width": 96}
    found = offered(special, ModelConfig(default_sampling=values))
    assert found.resolve({"num_frames": 1}).num_inference_steps == 6
    assert found.resolve({}).num_inference_steps == 6
    assert found.resolve({"num_frames": 1}).width == 96


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3}, "Unknown sampling parameter 'steps'"),
        ({"seed": 3}, "Unknown sampling parameter 'seed'"),
        ({"num_inference_steps": 0}, "The default 'num_inference_steps'"),
        ({"flow_shift": 3.0}, "The default 'flow_shift' has no effect on lab/tiny"),
        ({"width": 65}, "Nearest: 64 or 80"),
    ],
)
def test_defaults_a_request_could_not_have_are_refused(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        card(default_sampling=values)


def test_the_type_of_a_model_is_checked() -> None:
    assert load_card(build({"model_type": "wan"})).family == "wan"
    with pytest.raises(ConfigError, match="--model-type qwen: shapes is of the family wan"):
        load_card(build({"model_type": "qwen"}))
