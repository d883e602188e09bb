"""A worker group: torchrun, started so that it dies with the supervisor.

This module is run as a process. It is torchrun (`torch.distributed.run`) with three things added:
the death signal, a private log directory, and a rendezvous in files. torchrun's own would listen on
every interface of the host, and unpickle what it is sent there.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from safelight.wire.child import arguments


def command(run_dir: Path, ranks: int) -> list[str]:
    """torchrun's own arguments for a group of `ranks` on this host."""
    return [
        "--nnodes=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={rendezvous(run_dir) / 'agent'}",
        # The file only grows, so the agent shall not say every five seconds that it lives; there is
        # no other node that would listen.
        "--rdzv-conf=store_type=file,keep_alive_interval=3600",
        f"--rdzv-id={os.getpid()}",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",  # the supervisor restarts, so that it is counted in one place
        "--monitor-interval=0.5",
        f"--log-dir={run_dir / 'torchrun'}",
        "--module",
        "safelight.worker",
        f"--run-dir={run_dir}",
        f"--parent={os.getpid()}",
    ]


def rendezvous(run_dir: Path) -> Path:
    """The directory, of this start of this group alone, in whose files the ranks meet."""
    return run_dir / f"rendezvous-{os.getpid()}"


def main() -> None:
    run_dir = arguments("safelight.launch.ranks")
    rendezvous(run_dir).mkdir()
    os.environ["SAFELIGHT_RENDEZVOUS"] = str(rendezvous(run_dir) / "ranks")
    # Without it the agent opens a TCP store for the ranks, which they do not use.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    # It reports every rank that ends with a status, which the rank itself has explained.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").disabled = True
    try:
        torchrun(command(run_dir, int(os.environ["SAFELIGHT_RANKS"])))
    except ChildFailedError as failure:
        # The rank has said why; torchrun's report would bury it.
        status = failure.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else f"a rank ended with exit code {status}")
    except SignalException as signal:
        sys.exit(128 + signal.sigval)


if __name__ == "__main__":
    main()
