"""Which CUDA devices each worker group sees. Needs no torch: it reads what the user said."""

from __future__ import annotations

import os
from collections.abc import Mapping

from safelight.config import EngineConfig
from safelight.errors import ConfigError
from safelight.parallel.layout import Layout


def visible_devices(
    config: EngineConfig, layout: Layout, environ: Mapping[str, str] | None = None
) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each group, in order; None leaves it as it is.

    Raises `ConfigError` if there are fewer devices than ranks, or an id that is not one.
    """
    environ = os.environ if environ is None else environ
    if config.model.device == "cpu":
        return [None] * layout.dp
    devices = _devices(config.parallel.gpu_ids, environ.get("CUDA_VISIBLE_DEVICES"))
    if devices is None:
        if layout.dp == 1:
            return [None]
        devices = [str(index) for index in range(layout.num_gpus)]
    if not devices and config.model.device == "auto":
        return [None] * layout.dp  # hidden on purpose: the model runs on the CPU
    if len(devices) < layout.num_gpus:
        source = "--gpu-ids" if config.parallel.gpu_ids else "CUDA_VISIBLE_DEVICES"
        raise ConfigError(
            f"{layout.num_gpus} ranks need as many GPUs, {source} names {len(devices)}: "
            f"{', '.join(devices) or 'none'}. Lower --num-gpus, or name more.",
            param="gpu_ids",
        )
    size = layout.group_size
    return [",".join(devices[group * size :][:size]) for group in range(layout.dp)]


def _devices(gpu_ids: str | None, visible: str | None) -> list[str] | None:
    """The chosen devices as the driver knows them; None if nothing was said.

    Ids are places in `CUDA_VISIBLE_DEVICES` where that is set, as CUDA numbers devices itself.
    """
    seen = None if visible is None else [part.strip() for part in visible.split(",") if part]
    if gpu_ids is None:
        return seen
    chosen = [part.strip() for part in gpu_ids.split(",")]
    for part in chosen:
        if not part.isdecimal():
            raise ConfigError(
                f"--gpu-ids: '{part}' is not a device number; write them as 0,2,3.", param="gpu_ids"
            )
        if seen is not None and int(part) >= len(seen):
            raise ConfigError(
                f"--gpu-ids: there is no device {part}; CUDA_VISIBLE_DEVICES={visible} leaves "
                f"{len(seen)}, numbered from 0.",
                param="gpu_ids",
            )
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"--gpu-ids {gpu_ids} names a device twice.", param="gpu_ids")
    return chosen if seen is None else [seen[int(part)] for part in chosen]
