"""A rank process, started by torchrun: load, warm up, serve plans."""

from __future__ import annotations

import os
import time

from safelight.errors import SafelightError
from safelight.wire.child import Child, arguments


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
    from safelight.models.registry import load_card, load_family
    from safelight.worker.loop import Place, RankLoop
    from safelight.worker.warmup import warm_up

    torch.set_num_threads(_threads(child.config.model.cpu_threads, world_size))
    try:
        child.starting("loading the model")
        family = load_family(child.config)
        child.starting("warming up")
        timings = warm_up(family, load_card(child.config))
    except SafelightError as failure:
        raise SystemExit(f"{name}: {failure}") from failure
    loop = RankLoop(child, Place(group, rank, world_size), family)
    child.ready(f"{torch.get_num_threads()} threads, {family.describe()}")
    loop.run(time.monotonic() - started, timings)
    child.close()


def _quiet() -> None:
    """The supervisor shows the stages; the libraries' own bars would only interleave."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _threads(configured: int, world_size: int) -> int:
    cores = len(os.sched_getaffinity(0))
    return configured or max(1, cores // world_size)


if __name__ == "__main__":
    main()
