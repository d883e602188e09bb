"""What runs: the processes of an engine, their order, and the environment of the ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from safelight.config import EngineConfig
from safelight.launch.devices import share_out
from safelight.launch.process import Program
from safelight.parallel.layout import Layout, complete, threads


@dataclass(frozen=True)
class Programs:
    """All processes of an engine."""

    stages: tuple[tuple[Program, ...], ...]
    """In the order of starting; the members of one stage start together."""
    models: Mapping[str, tuple[Program, ...]]
    """The worker groups of every model, of those too that are loaded later."""


def programs(config: EngineConfig, *, http: bool) -> Programs:
    """Raises `ConfigError` if a layout does not fit, or there are too few devices."""
    layouts = {entry.name: complete(entry.parallel) for entry in config.entries}
    ranks = sum(layouts[name].num_gpus for name in config.at_start)
    models: dict[str, tuple[Program, ...]] = {}
    group = 0
    for name, devices in share_out(config, layouts).items():
        models[name] = tuple(
            _workers(group + place, config.of(name), name, layouts[name], ranks, visible)
            for place, visible in enumerate(devices)
        )
        group += len(devices)
    first = (Program("scheduler", "safelight.scheduler"), Program("output", "safelight.output"))
    workers = tuple(program for name in config.at_start for program in models[name])
    last = (Program("entrypoint", "safelight.entrypoint"),) if http else ()
    return Programs(tuple(stage for stage in (first, workers, last) if stage), models)


def _workers(
    group: int, config: EngineConfig, model: str, layout: Layout, ranks: int, visible: str | None
) -> Program:
    """A worker group; `ranks` share the cores of this host."""
    cores = len(os.sched_getaffinity(0))
    environment = {
        "SAFELIGHT_MODEL": model,
        "SAFELIGHT_GROUP": str(group),
        "SAFELIGHT_RANKS": str(layout.group_size),
        "OMP_NUM_THREADS": str(
            threads(config.model.cpu_threads, cores, max(ranks, layout.num_gpus))
        ),
        **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
        # All ranks are on this host: nobody listens anywhere else.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        **_spinning(),
        **_ALLOCATOR,
        # What diffusers and transformers deprecate is ours to follow, not the user's to read.
        "PYTHONWARNINGS": "ignore",
    }
    return Program(f"workers-{group}", "safelight.launch.ranks", environment, model)


_ALLOCATOR = {
    name: os.environ.get(name, value)
    for name, value in {
        # Keep what a forward frees instead of giving it back to the kernel page by page: a tenth of
        # a batched step on the CPU.
        "MALLOC_MMAP_THRESHOLD_": str(2**30),
        "MALLOC_TRIM_THRESHOLD_": str(2**30),
    }.items()
}


def _spinning() -> dict[str, str]:
    """How long OpenMP threads spin at a barrier before they sleep, unless the user has said.

    Where cores are shared, the default (for milliseconds) makes forwards up to thirty times slower;
    not at all costs a third of a small forward. A thousand turns, some microseconds, are near the
    best of both.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return {}
    return {"GOMP_SPINCOUNT": "1000"}
