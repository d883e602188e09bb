"""Cleans up after a supervisor that could not: run as a script, standard library only.

It reads `+<pid>` and `-<pid>` lines from its standard input, whose other end the supervisor holds.
When that end closes, for whatever reason, or at a line `.`, it SIGKILLs the process groups still on
the list and removes the run directory. It is in a session of its own, so no terminal signal reaches
it.
"""

import contextlib
import os
import shutil
import signal
import sys


def start_time(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat (proc(5)); tells a process from a later one with its number."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def main(run_dir: str) -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin:
        if line[0] == ".":  # a child that inherited the other end may still hold it
            break
        pid = int(line[1:])
        if line[0] == "+":
            groups[pid] = start_time(pid)
        else:
            groups.pop(pid, None)
    for pid, started in groups.items():
        if started and start_time(pid) == started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
    shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
