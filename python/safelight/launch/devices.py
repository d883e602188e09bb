"""Which CUDA devices each worker group sees. Needs no torch: it reads what the user said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from safelight.config import EngineConfig, ParallelConfig
from safelight.errors import ConfigError
from safelight.parallel.layout import Layout


def count_gpus(dev: Path = Path("/dev")) -> int:
    """GPUs of this host, by their device nodes."""
    return sum(1 for _ in dev.glob("nvidia[0-9]*"))


def share_out(config: EngineConfig, layouts: Mapping[str, Layout]) -> dict[str, list[str | None]]:
    """`CUDA_VISIBLE_DEVICES` of every group of every model.

    Models that name no GPUs get some of their own where there are enough for all, in order; else
    they share those there are, from the first.
    """
    free = [
        entry
        for entry in config.entries
        if entry.parallel.gpu_ids is None and entry.model.device != "cpu"
    ]
    needed = sum(_devices(entry.parallel, layouts[entry.name]) for entry in free)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = count_gpus()
    known = gpus if visible is None else len(list(_seen(visible, gpus)))
    named = {part.strip() for e in config.entries for part in (e.parallel.gpu_ids or "").split(",")}
    spare = [str(place) for place in range(known) if str(place) not in named]
    apart = len(config.entries) > 1 and needed <= len(spare)
    shares, place = {}, 0
    for entry in config.entries:
        layout, one = layouts[entry.name], config.of(entry.name)
        if apart and entry in free:
            count = _devices(entry.parallel, layout)
            ids = ",".join(spare[place:][:count])
            parallel = msgspec.structs.replace(one.parallel, gpu_ids=ids)
            one = msgspec.structs.replace(one, parallel=parallel)
            place += count
        shares[entry.name] = visible_devices(one, layout)
    return shares


def _devices(parallel: ParallelConfig, layout: Layout) -> int:
    """CUDA devices of all ranks of a model."""
    return layout.num_gpus * parallel.gpus_per_rank


def visible_devices(
    config: EngineConfig,
    layout: Layout,
    environ: Mapping[str, str] | None = None,
    gpus: int | None = None,
) -> list[str | None]:
    """`CUDA_VISIBLE_DEVICES` of each group, in order; None leaves it as it is.

    `gpus` is how many this host has, by default counted. Raises `ConfigError` if there are fewer
    devices than ranks, or an id that is not one.
    """
    gpu_ids, device = config.parallel.gpu_ids, config.model.device
    if device == "cpu":
        if gpu_ids is not None:
            raise _refusal("--gpu-ids contradicts --device cpu: leave one of them out.")
        return [None] * layout.dp
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    gpus = count_gpus() if gpus is None else gpus
    seen = None if visible is None else list(_seen(visible, gpus))
    if gpu_ids is not None:
        devices, source = _chosen(gpu_ids, seen, gpus), "--gpu-ids names"
    elif seen is not None:
        devices, source = seen, f'CUDA_VISIBLE_DEVICES="{visible}" leaves'
    else:
        devices, source = [str(index) for index in range(gpus)], "this host has"
    if not devices and (device == "auto" or seen is None):
        return [None] * layout.dp  # auto runs on the CPU; for cuda the ranks say what is missing
    needed = _devices(config.parallel, layout)
    if len(devices) < needed:
        each = "as many" if needed == layout.num_gpus else f"{needed}"
        raise _refusal(
            f"{layout.num_gpus} ranks need {each} GPUs, {source} {len(devices)}: "
            f"{', '.join(devices) or 'none'}. Lower --num-gpus, or use --device cpu."
        )
    if gpu_ids is None and seen is None and layout.dp == 1:
        return [None]
    size = layout.group_size * config.parallel.gpus_per_rank
    return [",".join(devices[group * size :][:size]) for group in range(layout.dp)]


def _seen(visible: str, gpus: int) -> Iterator[str]:
    """The devices of `CUDA_VISIBLE_DEVICES`. CUDA stops reading at the first that is not there,
    so that -1 hides all."""
    for part in filter(None, map(str.strip, visible.split(","))):
        if part.startswith("-") or (part.isdecimal() and 0 < gpus <= int(part)):
            return
        yield part


def _chosen(gpu_ids: str, seen: list[str] | None, gpus: int) -> list[str]:
    """The devices of `--gpu-ids` as the driver knows them.

    Ids are places in `CUDA_VISIBLE_DEVICES` where that is set, as CUDA numbers devices itself.
    """
    chosen = [part.strip() for part in gpu_ids.split(",")]
    known = [str(index) for index in range(gpus)] if seen is None else seen
    for part in chosen:
        if not part.isdecimal():
            raise _refusal(f"--gpu-ids: '{part}' is not a device number; write them as 0,2,3.")
    places = [int(part) for part in chosen]
    if (place := max(places)) >= len(known):
        source = "this host has" if seen is None else "CUDA_VISIBLE_DEVICES leaves"
        raise _refusal(
            f"--gpu-ids: there is no device {place}; {source} {len(known)}, numbered from 0."
        )
    if len(set(places)) < len(places):
        raise _refusal(f"--gpu-ids {gpu_ids} names a device twice.")
    return [known[place] for place in places]


def _refusal(message: str) -> ConfigError:
    return ConfigError(message, param="gpu_ids")
