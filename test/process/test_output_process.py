"""The real output manager over real sockets, with frames in a real memfd."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from fakes import probe
from fakes.shared_memory import clip, frames_message, in_memory
from fakes.sound import Audio, audio, heard, pitch, sounding, tone
from fakes.supervisor import PATIENCE_S, Supervised, receive, supervised
from safelight.wire import codec, links
from safelight.wire.messages import (
    Frames,
    FromOutput,
    MediaFailed,
    MediaReady,
    PeerRestarted,
    Stop,
)


class Output:
    """The real process between a fake rank and a fake manager."""

    def __init__(self, child: Supervised) -> None:
        self.child = child
        self.media: Any = links.MEDIA.listen(child.context, child.run_dir)
        assert child.wait_ready().process == "output"
        self.rank: Any = links.FRAMES.connect(
            child.context, child.run_dir, links.rank_identity(0, 0)
        )

    def send(self, message: Frames) -> None:
        self.rank.send(codec.encode(message))

    def answer(self) -> FromOutput:
        identity, data = receive(self.media)
        assert identity == b"output"
        message: FromOutput = links.MEDIA.decode_up(data)
        return message

    def barrier(self) -> list[FromOutput]:
        """Wait until everything sent so far has been taken; the answers that came meanwhile.

        A link keeps its order, and a message that is refused is answered at once.
        """
        self.rank.send(msgspec.msgpack.encode({"sample": "barrier.0", "attempt": 0}))
        answers = []
        while (answer := self.answer()).sample != "barrier.0":
            answers.append(answer)
        return answers

    def exit_status(self) -> int:
        return self.child.process.wait(PATIENCE_S)


@pytest.fixture
def output() -> Iterator[Output]:
    with supervised("safelight.output") as child:
        output = Output(child)
        yield output
        output.rank.close()
        output.media.close()


def test_a_clip_and_a_picture(output: Output, tmp_path: Path) -> None:
    pixels = clip(9, 64, 64)
    with in_memory(pixels) as memory:
        output.send(frames_message(memory, pixels, tmp_path / "new" / "clip.mp4", "mp4"))
        answer = output.answer()
    data = (tmp_path / "new" / "clip.mp4").read_bytes()
    assert answer == MediaReady(
        sample="job.0",
        attempt=1,
        path=str(tmp_path / "new" / "clip.mp4"),
        media_type="video/mp4",
        nbytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=64,
        height=64,
        num_frames=9,
    )
    assert probe.decode(tmp_path / "new" / "clip.mp4").shape == (9, 64, 64, 3)

    with in_memory(pixels[:1]) as memory:
        path = tmp_path / "still.png"
        output.send(frames_message(memory, pixels[:1], path, "png", parameters={"seed": "3"}))
        answer = output.answer()
    assert isinstance(answer, MediaReady)
    assert (answer.media_type, answer.num_frames) == ("image/png", 1)
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), pixels[0])
        assert image.info == {"seed": "3"}


def test_a_clip_with_sound(output: Output, tmp_path: Path) -> None:
    """The rank lets go of both as soon as they are taken; what lies about its sound fails alone."""
    pixels = clip(8, 64, 64)
    with in_memory(pixels) as memory, sounding(tone(1.0)) as sound:
        silent = frames_message(memory, pixels, tmp_path / "clip.mp4", "mp4")
        good = msgspec.structs.replace(silent, sound=sound)
        for name, shape in {"long.0": (24_001, 2), "wide.0": (24_000, 3)}.items():
            wrong = msgspec.structs.replace(sound, shape=shape)
            output.send(msgspec.structs.replace(good, sample=name, sound=wrong))
        lost = msgspec.structs.replace(sound, memory="/proc/1/fd/999")
        output.send(msgspec.structs.replace(good, sample="lost.0", sound=lost))
        output.send(good)
        early = output.barrier()
    answers = {a.sample: a for a in early}
    if "job.0" not in answers:
        answers["job.0"] = output.answer()
    codes = {a.sample: a.code for a in answers.values() if isinstance(a, MediaFailed)}
    assert codes == {"long.0": "bad_frames", "wide.0": "bad_frames", "lost.0": "frames_lost"}
    assert isinstance(answers["job.0"], MediaReady)
    assert len(probe.decode(tmp_path / "clip.mp4")) == 8
    assert audio(tmp_path / "clip.mp4") == Audio("aac", 24_000, "stereo")
    again = heard(tmp_path / "clip.mp4")
    assert (len(again), round(pitch(again[:, 0]))) == (24_000, 440)


def test_what_is_wrong_fails_alone(output: Output, tmp_path: Path) -> None:
    """Every wrong message is answered for its sample, and the next right one is served."""
    pixels = clip(2, 16, 16)
    (tmp_path / "file").touch()
    with in_memory(pixels) as memory:
        good = frames_message(memory, pixels, tmp_path / "good.mp4", "mp4", sample="good.0")
        wrong = {
            "lies.0": msgspec.structs.replace(good, shape=(3, 16, 16, 3)),
            "gone.0": msgspec.structs.replace(good, memory="/proc/1/fd/999"),
            "relative.0": frames_message(memory, pixels, "x.mp4", "mp4"),
            "still.0": frames_message(memory, pixels, tmp_path / "x.png", "png"),
            "under.0": frames_message(memory, pixels, tmp_path / "file" / "x.mp4", "mp4"),
            "rate.0": frames_message(memory, pixels, tmp_path / "x.mp4", "mp4", fps=0),
        }
        for sample, message in wrong.items():
            output.send(msgspec.structs.replace(message, sample=sample))
        output.rank.send(b"\xc1 no MessagePack")
        output.rank.send(
            msgspec.msgpack.encode({"type": "Frames", "sample": "torn.0", "attempt": 4})
        )
        answers = {(a := output.answer()).sample: a for _ in range(len(wrong) + 1)}
        output.send(good)
        assert isinstance(output.answer(), MediaReady)

    assert all(isinstance(answer, MediaFailed) for answer in answers.values())
    codes = {a.sample: a.code for a in answers.values() if isinstance(a, MediaFailed)}
    assert codes == {
        "lies.0": "bad_frames",
        "gone.0": "frames_lost",
        "relative.0": "write_failed",
        "still.0": "bad_frames",
        "under.0": "write_failed",
        "rate.0": "encode_failed",
        "torn.0": "bad_frames",
    }
    assert answers["torn.0"].attempt == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "good.mp4"]


def test_stop_finishes_what_has_arrived(output: Output, tmp_path: Path) -> None:
    pixels = clip(9, 128, 128)
    output.child.say(PeerRestarted(process="workers-0"))
    with in_memory(pixels) as memory:
        for index in range(6):
            path = tmp_path / f"{index}.mp4"
            output.send(frames_message(memory, pixels, path, "mp4", sample=f"job.{index}"))
        answers = output.barrier()
        output.child.say(Stop(grace=PATIENCE_S))
        answers += [output.answer() for _ in range(6 - len(answers))]
    assert output.exit_status() == 0
    assert {a.sample for a in answers if isinstance(a, MediaReady)} == {
        f"job.{index}" for index in range(6)
    }
    assert len(list(tmp_path.iterdir())) == 6


def test_no_grace_leaves_no_half_files(output: Output, tmp_path: Path) -> None:
    pixels = clip(48, 256, 256)
    with in_memory(pixels) as memory:
        for index in range(8):
            path = tmp_path / f"{index}.mp4"
            output.send(frames_message(memory, pixels, path, "mp4", sample=f"job.{index}"))
        output.barrier()
        output.child.say(Stop(grace=0.001))
        assert output.exit_status() == 0
    left = [p.name for p in tmp_path.iterdir()]
    assert all(name.endswith(".mp4") for name in left)
    for name in left:
        assert len(probe.decode(tmp_path / name)) == 48


def test_sigterm_is_a_stop_and_sigint_is_not(output: Output, tmp_path: Path) -> None:
    pixels = clip(1, 16, 16)
    output.child.process.send_signal(signal.SIGINT)
    with in_memory(pixels) as memory:
        output.send(frames_message(memory, pixels, tmp_path / "a.webp", "webp"))
        assert isinstance(output.answer(), MediaReady)
    output.child.process.send_signal(signal.SIGTERM)
    assert output.exit_status() == 0
