"""Which GPUs a worker group sees."""

from __future__ import annotations

import pytest

from safelight import config as configuration
from safelight.errors import ConfigError
from safelight.launch.devices import visible_devices
from safelight.parallel.layout import complete


def groups(environ: dict[str, str], **settings: object) -> list[str | None]:
    config = configuration.build(settings)
    return visible_devices(config, complete(config.parallel), environ)


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
        ({}, {"dp_size": 2, "gpu_ids": "3,5"}, ["3", "5"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"dp_size": 2}, [None, None]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, {"dp_size": 2, "device": "cpu"}, [None, None]),
    ],
)
def test_devices_are_shared_out_in_order(
    environ: dict[str, str], settings: dict[str, object], expected: list[str | None]
) -> None:
    assert groups(environ, **settings) == expected


@pytest.mark.parametrize(
    ("environ", "settings", "words"),
    [
        ({}, {"num_gpus": 2, "gpu_ids": "0"}, ["2 ranks", "--gpu-ids names 1"]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {"num_gpus": 2}, ["CUDA_VISIBLE_DEVICES names 1: 3"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, {"device": "cuda"}, ["names 0: none"]),
        ({}, {"gpu_ids": "a"}, ["'a' is not a device number"]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, {"gpu_ids": "1"}, ["no device 1", "leaves 1"]),
        ({}, {"num_gpus": 2, "gpu_ids": "1,1"}, ["twice"]),
    ],
)
def test_too_few_or_wrong_devices_are_refused(
    environ: dict[str, str], settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        groups(environ, **settings)
    assert [word for word in words if word not in str(refused.value)] == []
