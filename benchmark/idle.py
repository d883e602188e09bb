"""What an idle server costs: CPU time and memory of all its processes.

    python benchmark/idle.py --seconds 20

It starts `safelight serve`, has it do one clip (so that nothing is lazily loaded later), lets it
rest, and then reads the processes' CPU clocks `--seconds` apart.
"""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import psutil
import typer

import common
import workload
from server import Server, cpu_seconds
from serving import load

TARGET = 2.0  # percent of one core, all processes together
_REST_SECONDS = 5.0


class Process(msgspec.Struct):
    name: str
    cpu_percent: float
    """Of one core."""
    wakeups_per_second: float
    """Voluntary context switches of all its threads."""
    rss_mib: float
    uss_mib: float
    """What would be free without it: RSS without what it shares."""


def measure(processes: dict[str, psutil.Process], seconds: float) -> list[Process]:
    begin = time.monotonic()
    before = {name: (cpu_seconds(p), _switches(p)) for name, p in processes.items()}
    time.sleep(seconds)
    after = {name: (cpu_seconds(p), _switches(p)) for name, p in processes.items()}
    spent = time.monotonic() - begin
    found = []
    for name, process in processes.items():
        memory = process.memory_full_info()
        (cpu, switches), (cpu_before, switches_before) = after[name], before[name]
        found.append(
            Process(
                name=name,
                cpu_percent=100 * (cpu - cpu_before) / spent,
                wakeups_per_second=(switches - switches_before) / spent,
                rss_mib=memory.rss / 2**20,
                uss_mib=memory.uss / 2**20,
            )
        )
    return found


def _switches(process: psutil.Process) -> int:
    """Of all threads; `psutil` only counts the main one's."""
    total = 0
    for thread in process.threads():
        with open(f"/proc/{process.pid}/task/{thread.id}/status", encoding="utf-8") as status:
            counts = dict(line.split(":", 1) for line in status)
        total += int(counts["voluntary_ctxt_switches"])
    return total


def main(
    seconds: Annotated[float, typer.Option(min=1, help="How long to look.")] = 20.0,
    model_path: common.ModelPath = "builtin:shapes",
    device: common.Device = "auto",
    cpu_threads: common.Threads = 0,
    name: common.Name = "idle",
) -> None:
    """CPU time and memory of an idle server."""
    with Server(common.engine_config(model_path, device, cpu_threads)) as server:
        (outcome,) = load(server.base_url, workload.make_jobs(1, [2]))
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        time.sleep(_REST_SECONDS)
        found = measure(server.processes(), seconds)
    total = Process(
        "all", *(sum(getattr(p, f) for p in found) for f in Process.__struct_fields__[1:])
    )
    common.table(
        f"idle for {seconds:g} s",
        ("process", "CPU, % of a core", "wake-ups/s", "RSS, MiB", "USS, MiB"),
        [
            (
                p.name,
                f"{p.cpu_percent:.2f}",
                f"{p.wakeups_per_second:.1f}",
                f"{p.rss_mib:.0f}",
                f"{p.uss_mib:.0f}",
            )
            for p in (*found, total)
        ],
    )
    common.console.print(f"CPU: {common.verdict(total.cpu_percent, TARGET, '%')}")
    figures = {"seconds": seconds, "target_percent": TARGET, "processes": found, "total": total}
    common.save(name, figures)


if __name__ == "__main__":
    common.run(main)
