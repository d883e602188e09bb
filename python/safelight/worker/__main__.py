"""A rank process, started by torchrun: load, warm up, serve plans."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from safelight.errors import SafelightError
from safelight.wire.child import Child, arguments

if TYPE_CHECKING:
    import torch

    from safelight.config import ParallelConfig
    from safelight.parallel.mesh import Mesh


def main() -> None:
    run_dir = arguments("safelight.worker")
    group = int(os.environ["SAFELIGHT_GROUP"])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    name = f"workers-{group}" if rank == 0 else f"workers-{group}.{rank}"
    child = Child.enter(name, run_dir)
    started = time.monotonic()
    child.starting("importing torch and diffusers")
    import torch

    _quiet()
    from safelight.models.loading import device_of, reporting
    from safelight.models.registry import load_card, load_family
    from safelight.worker.loop import RankLoop
    from safelight.worker.warmup import warm_up

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = child.config.of(os.environ["SAFELIGHT_MODEL"])
    try:
        device = device_of(config.model, _first_device(config.parallel))
        mesh = _mesh(child, config.parallel, device, world_size)
        child.starting("loading the model")
        begun = time.monotonic()
        with reporting(partial(_component, child)):
            family = load_family(config, mesh)
        loaded = time.monotonic()
        child.starting("warming up")
        timings = warm_up(family, load_card(config), mesh)
        loop = RankLoop(child, group, mesh, family, config.model_name)
        ranks = f"{world_size} ranks, " if world_size > 1 else ""
        size = f"{sum(family.weights().values()) / 1e9:.3g} GB of weights in {loaded - begun:.1f} s"
        child.ready(f"{ranks}{torch.get_num_threads()} threads, {family.describe()}, {size}")
        loop.run(loaded - started, timings)
    except SafelightError as failure:
        raise SystemExit(f"{name}: {failure}") from failure
    mesh.close()
    child.close()
    # The interpreter's farewell to torch takes seconds, in which nobody knows that it has ended.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _first_device(parallel: ParallelConfig) -> int:
    """Number of this rank's first device among those its group sees."""
    return int(os.environ["LOCAL_RANK"]) * parallel.gpus_per_rank


def _component(child: Child, name: str, place: int, count: int, size: int) -> None:
    child.starting(f"loading {name} {place}/{count} ({size / 1e9:.3g} GB)")


def _mesh(child: Child, parallel: ParallelConfig, device: torch.device, world_size: int) -> Mesh:
    """The group's ranks along their axes, met over the loopback interface."""
    import torch

    from safelight.parallel import mesh
    from safelight.parallel.layout import complete

    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    if world_size == 1:
        return mesh.Mesh.single(device)
    child.starting("meeting the other ranks")
    meeting = os.environ["SAFELIGHT_RENDEZVOUS"]
    mesh.join(device, meeting, int(os.environ["RANK"]), world_size, parallel.collective_timeout)
    created = mesh.Mesh.create(complete(parallel), device)
    if parallel.sequence_parallel_backend == "xfuser":
        from safelight.parallel import xfuser_backend

        xfuser_backend.install(created)
    return created


def _quiet() -> None:
    """The supervisor shows the stages; the libraries' own bars would only interleave."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


if __name__ == "__main__":
    main()
