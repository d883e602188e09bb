"""The output manager's process."""

import os

from safelight.output.process import OutputProcess
from safelight.wire.child import Child, arguments

NICENESS = 10
"""Encoding fills the gaps that the ranks leave; it must not take a core from a forward."""


def main() -> None:
    os.nice(NICENESS)
    child = Child.enter("output", arguments("safelight.output"))
    OutputProcess(child).run()
    child.close()


if __name__ == "__main__":
    main()
