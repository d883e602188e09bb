"""The output manager's process."""

from safelight.output.process import OutputProcess
from safelight.wire.child import Child, arguments


def main() -> None:
    child = Child.enter("output", arguments("safelight.output"))
    OutputProcess(child).run()
    child.close()


if __name__ == "__main__":
    main()
