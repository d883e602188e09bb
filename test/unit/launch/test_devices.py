"""Which GPUs a worker group sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight import config as configuration
from safelight.errors import ConfigError
from safelight.launch import devices
from safelight.launch.devices import count_gpus, share_out, visible_devices
from safelight.parallel.layout import complete


def groups(environ: dict[str, str], gpus: int, **settings: object) -> list[str | None]:
    config = configuration.build(settings)
    return visible_devices(config, complete(config.parallel), environ, gpus)


@pytest.mark.parametrize(
    ("environ", "settings", "expected"),
    [
        ({}, {}, [None]),
        ({}, {"num_gpus": 2}, [None]),
        ({}, {"num_gpus": 4, "dp_size": 2}, ["0,1", "2,3"]),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {"dp_size": 2}, ["4", "5"]),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {"num_gpus": 2, "gpu_ids": "3,1"}, ["7,5"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, {"dp_size": 2}, ["GPU-a", "GPU-b"]),
        ({}, {"gpu_ids": "2"}, ["2"]),
        ({}, {"gpu_ids": "2,0"}, ["2,0"]),
        ({}, {"dp_size": 2, "gpu_ids": "3,5"}, ["3", "5"]),
        ({}, {"num_gpus": 1, "gpus_per_rank": 2, "gpu_ids": "1,3"}, ["1,3"]),
        ({}, {"dp_size": 2, "gpus_per_rank": 2}, ["0,1", "2,3"]),
        ({}, {"gpus_per_rank": 2, "gpu_ids": "4,5,6,7"}, ["4,5,6,7"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"dp_size": 2}, [None, None]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {"dp_size": 2}, [None, None]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {}, [None]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"dp_size": 2, "device": "cpu"}, [None, None]),
    ],
)
def test_devices_are_shared_out_in_order(
    environ: dict[str, str], settings: dict[str, object], expected: list[str | None]
) -> None:
    assert groups(environ, 8, **settings) == expected


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_where_there_are_none_it_is_for_the_ranks_to_say(device: str) -> None:
    assert groups({}, 0, dp_size=2, device=device) == [None, None]
    assert groups({}, 0, num_gpus=2, device=device) == [None]


@pytest.mark.parametrize(
    ("environ", "settings", "words"),
    [
        ({}, {"num_gpus": 2, "gpu_ids": "0"}, ["2 ranks", "--gpu-ids names 1"]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {"num_gpus": 2}, ['="3" leaves 1: 3']),
        ({"CUDA_VISIBLE_DEVICES": "3,-1,4"}, {"num_gpus": 2}, ["leaves 1: 3"]),
        ({"CUDA_VISIBLE_DEVICES": "7,8"}, {"dp_size": 2}, ["leaves 1: 7"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"device": "cuda"}, ["leaves 0: none"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {"device": "cuda"}, ["leaves 0: none"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, {"gpu_ids": "0"}, ["no device 0", "leaves 0"]),
        ({}, {"gpu_ids": "a"}, ["'a' is not a device number"]),
        ({}, {"gpu_ids": "9,a"}, ["'a' is not a device number"]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {"gpu_ids": "1"}, ["no device 1", "leaves 1"]),
        ({}, {"num_gpus": 2, "gpu_ids": "1,1"}, ["twice"]),
        ({}, {"num_gpus": 2, "gpu_ids": "1,01"}, ["twice"]),
        ({}, {"gpu_ids": "8"}, ["no device 8", "this host has 8"]),
        ({}, {"num_gpus": 16}, ["16 ranks", "this host has 8"]),
        ({}, {"num_gpus": 16, "dp_size": 4, "device": "cuda"}, ["16 ranks", "this host has 8"]),
        ({}, {"gpu_ids": "0", "device": "cpu"}, ["contradicts --device cpu"]),
    ],
)
def test_too_few_or_wrong_devices_are_refused(
    environ: dict[str, str], settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        groups(environ, 8, **settings)
    assert [word for word in words if word not in str(refused.value)] == []


def test_ids_on_a_host_without_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="no device 0; this host has 0"):
        groups({}, 0, gpu_ids="0")


def test_gpus_are_counted_by_their_device_nodes(tmp_path: Path) -> None:
    assert count_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path) == 2


def shares(gpus: int, monkeypatch: pytest.MonkeyPatch, *models: dict[str, object]) -> list[object]:
    """What each of several models sees, on a host with so many GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "count_gpus", lambda: gpus)
    named = [{"name": f"m{place}", **model} for place, model in enumerate(models)]
    config = configuration.build({"models": named})
    layouts = {entry.name: complete(entry.parallel) for entry in config.entries}
    return list(share_out(config, layouts).values())


@pytest.mark.parametrize(
    ("gpus", "models", "expected"),
    [
        (2, [{}, {}], [["0"], ["1"]]),
        (4, [{"num_gpus": 2}, {}], [["0,1"], ["2"]]),
        (1, [{}, {}], [[None], [None]]),  # they take turns, or share it
        (4, [{"gpu_ids": "0,1"}, {}, {}], [["0,1"], ["2"], ["3"]]),
        (4, [{"gpu_ids": "0"}, {}], [["0"], ["1"]]),
        (2, [{"gpu_ids": "0"}, {}, {}], [["0"], [None], [None]]),
        (2, [{"device": "cpu", "dp_size": 2}, {}, {}], [[None, None], ["0"], ["1"]]),
    ],
)
def test_several_models_get_gpus_of_their_own_where_there_are_enough(
    gpus: int,
    models: list[dict[str, object]],
    expected: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert shares(gpus, monkeypatch, *models) == expected
