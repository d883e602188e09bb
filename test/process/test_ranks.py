"""Several ranks behind one server: the SDK's flow, two replicas, and ranks that die or hang."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from openai import OpenAI
from PIL import Image

from fakes import probe
from fakes.server import Server
from safelight.engine import Engine, build_config
from safelight.wire.messages import PlanDone

PROMPT = "a red circle moving left on a black background"
START = 90.0
"""Seconds in which four ranks must serve on two cores."""
FLAGS = ("--num-gpus", "4", "--ulysses-degree", "2", "--ring-degree", "2", "--tp-size", "2")


@dataclass
class Four:
    """A server of four ranks."""

    server: Server

    @property
    def ranks(self) -> list[psutil.Process]:
        """The rank processes, in the order of ranks."""
        found = self.server.process.children(recursive=True)
        ranks = [p for p in found if "safelight.worker" in p.cmdline()]
        return sorted(ranks, key=lambda p: int(p.environ()["RANK"]))

    def groups(self) -> list[dict[str, object]]:
        return list(self.server.client.get("/health").json()["groups"])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Four]:
    # A hung rank is noticed after `step-timeout`.
    flags = (*FLAGS, "--step-timeout", "8", "--collective-timeout", "30")
    server = Server(tmp_path_factory.mktemp("four") / "data", *flags)
    try:
        server.wait_ready(START)
        yield Four(server)
    finally:
        server.close()


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_the_sdks_flow_and_the_picture_of_one_rank(
    four: Four, live_server: Server, tmp_path: Path
) -> None:
    pictures, clips = [], []
    for name, server in (("four", four.server), ("one", live_server)):
        client = OpenAI(base_url=f"{server.base_url}/v1", api_key="none")
        video = client.videos.create(model="shapes", prompt=PROMPT, extra_body={"seed": 5})
        video = client.videos.poll(video.id)
        assert video.status == "completed"
        client.videos.download_content(video.id).write_to_file(tmp_path / f"{name}.mp4")
        clips.append(probe.decode(tmp_path / f"{name}.mp4"))
        image = client.images.generate(
            model="shapes",
            prompt="a blue square on a white background",
            response_format="url",
            extra_body={"seed": 5},
        )
        assert image.data is not None
        assert image.data[0].url is not None
        path = tmp_path / f"{name}.png"
        path.write_bytes(server.client.get(image.data[0].url).content)
        pictures.append(np.asarray(Image.open(path)).astype(int))
    assert pictures[0].std() > 10, "a flat picture proves nothing"
    # Rounded to whole numbers, what differs by 1e-5 differs by at most one.
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert clips[0].shape == clips[1].shape == (9, 64, 64, 3)
    assert np.abs(clips[0].astype(int) - clips[1]).mean() < 1


def test_it_says_what_every_rank_holds(four: Four) -> None:
    (group,) = four.groups()
    assert group["ready"] is True
    ranks = group["ranks"]
    assert isinstance(ranks, list)
    assert [rank["rank"] for rank in ranks] == [0, 1, 2, 3]
    for rank in ranks:
        assert rank["device"] == "cpu"
        assert 50 * 2**20 < rank["peak_memory"] < 4 * 2**30
        assert "pid" not in rank
    whole = sum(tensor.nbytes for tensor in _text_encoder_parameters())
    assert all(rank["weights"]["text_encoder"] <= 0.6 * whole for rank in ranks)


def _text_encoder_parameters() -> list[np.ndarray]:
    """Of the built-in model, in float32 as on the CPU."""
    import torch
    from transformers import UMT5EncoderModel

    from safelight.builtin import builtin_model

    encoder = UMT5EncoderModel.from_pretrained(
        builtin_model("shapes") / "text_encoder", dtype=torch.float32
    )
    return [parameter.detach().numpy() for parameter in encoder.parameters()]


def test_nobody_listens_beyond_this_host(four: Four) -> None:
    addresses = {
        connection.laddr.ip
        for process in [four.server.process, *four.server.process.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses == {"127.0.0.1"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("rank", "sign"), [(2, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_rank_that_dies_or_hangs_costs_time_and_no_job(
    four: Four, rank: int, sign: signal.Signals
) -> None:
    before = [p.pid for p in four.ranks]
    name = four.server.create(seed=3, num_inference_steps=100)
    four.server.wait_progress(name, 5)
    four.ranks[rank].send_signal(sign)
    assert four.server.wait(name, timeout=200)["status"] == "completed"
    after = [p.pid for p in four.ranks]
    assert len(after) == 4
    assert not set(before) & set(after)


def wait_serving(engine: Engine) -> None:
    """Until both replicas serve."""
    deadline = time.monotonic() + 120
    while [group.group for group in engine.groups() if group.ready] != [0, 1]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_two_replicas_share_the_load_and_one_goes_on_alone(tmp_path: Path) -> None:
    plans: list[PlanDone] = []
    config = build_config(
        device="cpu", dp_size=2, cpu_threads=1, log_level="error", max_batch_size=1
    )
    with Engine(config, on_plan=plans.append) as engine:
        wait_serving(engine)
        # A long job that nobody may preempt, then short ones: who counts jobs, or takes turns,
        # sends half of them behind the long one.
        sampling = {"num_inference_steps": 60, "seed": 0}
        long = engine.submit(PROMPT, sampling=sampling, priority=100)
        short = [
            engine.submit(PROMPT, sampling={"num_inference_steps": 5, "seed": i}) for i in range(8)
        ]
        for job in (long, *short):
            assert job.wait(120).status == "completed"
        steps = Counter(plan.group for plan in plans if plan.op == "step")
        where = {plan.samples[0]: plan.group for plan in plans if plan.op == "step"}
        beside_long = [s for s, g in where.items() if g == where[f"{long.id}.0"]]
        assert set(steps) == {0, 1}
        # 60 steps here and 40 there: the last of the short ones, at most, are better off here.
        assert len(beside_long) <= 3, where

        victim = engine.groups()[1].ranks[0].pid
        psutil.Process(victim).kill()
        plans.clear()
        more = [
            engine.submit(PROMPT, sampling={"num_inference_steps": 5, "seed": i}) for i in range(4)
        ]
        for job in more:
            assert job.wait(120).status == "completed"
        assert {plan.group for plan in plans if plan.op == "step"} <= {0, 1}
        wait_serving(engine)
        plans.clear()
        again = [engine.submit(PROMPT, sampling={"seed": i}) for i in range(6)]
        for job in again:
            assert job.wait(120).status == "completed"
        assert {plan.group for plan in plans if plan.op == "step"} == {0, 1}
