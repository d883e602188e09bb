"""A worker group: torchrun, started so that it dies with the supervisor.

This module is run as a process. It is torchrun (`torch.distributed.run`) with two things added: the
death signal, and a private log directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safelight.wire.child import arguments


def command(run_dir: Path, ranks: int) -> list[str]:
    """torchrun's own arguments for a group of `ranks` on this host."""
    return [
        "--standalone",  # a free rendezvous port on the loopback interface
        "--nnodes=1",
        f"--nproc-per-node={ranks}",
        "--max-restarts=0",  # the supervisor restarts, so that it is counted in one place
        "--monitor-interval=0.5",
        f"--log-dir={run_dir / 'torchrun'}",
        "--module",
        "safelight.worker",
        f"--run-dir={run_dir}",
        f"--parent={os.getpid()}",
    ]


def main() -> None:
    run_dir = arguments("safelight.launch.ranks")
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(command(run_dir, int(os.environ["SAFELIGHT_RANKS"])))
    except ChildFailedError as failure:
        # The rank has said why; torchrun's report would bury it.
        sys.exit(f"a rank ended with exit code {failure.get_first_failure()[1].exitcode}")


if __name__ == "__main__":
    main()
