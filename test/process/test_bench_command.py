"""`safelight bench` through all processes: what every rank reports is what the formulas say."""

from __future__ import annotations

import json
import subprocess
import sys

from safelight.parallel.layout import Layout
from safelight.parallel.volume import Forward, sent

SHAPES = Forward(batch=1, tokens=80, layers=6, hidden=128, outputs=80, itemsize=4)
"""One forward of the built-in model for its default clip."""


def test_bytes_weights_and_memory_of_every_rank() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "safelight", "bench", "--ranks", "--json"),
            *("--device", "cpu", "--cpu-threads", "1", "--ulysses-degree", "2", "--tp-size", "2"),
            *("--requests", "1", "--num-inference-steps", "4"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["layout"] == "--num-gpus 2 --ulysses-degree 2 --ring-degree 1 --tp-size 2"
    assert [rank["rank"] for rank in figures["ranks"]] == [0, 1]
    # Guided, and alone in its batch: a conditional and an unconditional forward a step.
    forward = sent(Layout(ulysses=2), SHAPES)
    for rank in figures["ranks"]:
        assert rank["steps"] == 4
        assert rank["bytes_per_step"] == {name: 2 * count for name, count in forward.items()}
        assert rank["step_seconds"] > 0
        assert rank["weights"]["text_encoder"] < rank["weights"]["transformer"]
        assert rank["peak_memory"] > sum(rank["weights"].values())
