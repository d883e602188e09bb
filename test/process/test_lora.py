"""Adapters through every real process: two replicas of two ranks under mixed load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from fakes import cases, lora
from fakes.cases import Stepper
from fakes.parity import one_thread
from fakes.simulation import spec as sample_spec
from safelight.engine import Engine, Job, build_config
from safelight.parallel.mesh import Mesh
from safelight.wire.messages import PlanDone

PROMPT = "a red circle moving left"
TIMEOUT = 300.0

WANTED: dict[str, tuple[list[Any], int]] = {
    "none": ([], 4),
    "a": (["a"], 5),
    "b": (["b"], 3),
    "both": (["a", {"name": "b", "scale": 0.5}], 4),
    "weak": ([{"name": "a", "scale": 0.3}], 6),
}
"""Adapters and steps of the jobs."""


@pytest.fixture(scope="module")
def files(tiny_wan_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapters a and b, which change the layer that gathers the sequence too."""
    directory = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        made = lora.write(tiny_wan_directory, directory / "parts" / name, seed, ["transformer"])
        shutil.copy(made, directory / f"{name}.safetensors")
    shutil.rmtree(directory / "parts")
    return directory


@pytest.fixture(scope="module")
def running(tiny_wan_directory: Path, files: Path) -> Iterator[tuple[Engine, list[PlanDone]]]:
    plans: list[PlanDone] = []
    config = build_config(
        model_path=str(tiny_wan_directory),
        device="cpu",
        num_gpus=4,
        dp_size=2,
        ulysses_degree=2,
        cpu_threads=1,
        log_level="warning",
        lora_dir=str(files),
        embed_parameters=False,
    )
    with Engine(config, on_plan=plans.append) as engine:
        yield engine, plans


def submit(engine: Engine, adapters: list[Any], steps: int) -> Job:
    sampling = {"width": 64, "height": 64, "seed": 5, "num_inference_steps": steps}
    return engine.submit(PROMPT, output="image", sampling=sampling, lora=adapters)


def alone(model: Path, files: Path, job: Job) -> np.ndarray:
    """The frame of a family on one rank that has seen no other adapters."""
    adapters = tuple(
        lora.adapter(files / f"{one.name}.safetensors", one.scale) for one in job.request.adapters
    )
    one = msgspec.structs.replace(
        sample_spec("alone.0"),
        prompt=PROMPT,
        task="text-to-image",
        sampling=job.request.sampling,
        adapters=adapters,
    )
    with one_thread():
        stepper = Stepper(cases.loaded(model), Mesh.single(cases.CPU))
        stepper.begin(one)
        return stepper.finish(one.id)[0]


def test_each_job_of_a_mixed_load_has_its_own_adapters_on_all_ranks_and_replicas(
    running: tuple[Engine, list[PlanDone]], tiny_wan_directory: Path, files: Path
) -> None:
    engine, plans = running
    jobs = {
        name: [submit(engine, adapters, steps) for _ in range(3)]
        for name, (adapters, steps) in WANTED.items()
    }
    expected = {name: alone(tiny_wan_directory, files, thrice[0]) for name, thrice in jobs.items()}
    for name, thrice in jobs.items():
        made = [pixels(job) for job in thrice]
        off = {other: max(_levels(one, expected[other]) for one in made) for other in expected}
        assert off.pop(name) <= 1, name  # batch-mates change the last bits
        assert min(off.values()) > 20, name
    groups = {plan.group for plan in plans if plan.op == "step"}
    assert len(groups) == 2, "one replica did it all"


def pixels(job: Job) -> np.ndarray:
    with Image.open(job.wait(TIMEOUT).outputs[0].path) as picture:
        return np.asarray(picture)


def _levels(made: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(made.astype(int) - expected.astype(int)).max())
