"""The scheduler process."""

from safelight.scheduler.process import SchedulerProcess
from safelight.wire.child import Child, arguments


def main() -> None:
    child = Child.enter("scheduler", arguments("safelight.scheduler"))
    SchedulerProcess(child).run()
    child.close()


if __name__ == "__main__":
    main()
