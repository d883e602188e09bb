"""What several ranks buy: the same steps on one rank and on the ranks of each layout.

    python benchmark/ranks.py --rounds 5

A Wan transformer of random weights, large enough that a forward is computing and not overhead, is
run through `Engine`, one clip at a time. The engines of one rank and of the layout are both up;
they take turns and the one that waits is idle, so both sides see the same machine. Every rank has
one thread: what is compared is one core with several. Reported are step and decode of rank 0, the
start-up, bytes sent a step, and weights and peak memory a rank.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

import common
from common import Spread
from safelight.builtin import builtin_model
from safelight.engine import Engine, build_config
from safelight.wire.messages import PlanDone

LAYOUTS: dict[str, dict[str, Any]] = {
    "ulysses 2": {"ulysses_degree": 2},
    "ring 2": {"ring_degree": 2},
    "cfg 2": {"cfg_parallel_size": 2},
    "cfg 2, tp 2, vae split": {"cfg_parallel_size": 2, "tp_size": 2, "vae_parallel": "on"},
}
STEPS = 4
_WARM_UP = 1  # clips that do not count

Rounds = Annotated[int, typer.Option(min=1, help="Clips of each side that count.")]
Size = Annotated[int, typer.Option(help="Width and height of the clip, in pixels.")]
Frames = Annotated[int, typer.Option(help="Frames of the clip.")]


class Side(msgspec.Struct):
    """One side of a comparison; seconds and bytes."""

    startup: float
    step: Spread
    decode: Spread
    sent_a_step: dict[str, float]
    """By axis and collective, of rank 0."""
    weights: dict[str, int]
    """Of rank 0, by component."""
    peak_memory: list[int]
    """By rank."""


class Comparison(msgspec.Struct):
    layout: str
    one: Side
    several: Side
    step_ratio: float
    """Median step of one rank over that of several: above 1, several are faster."""
    decode_ratio: float


class Running:
    """An engine and what its plans said."""

    def __init__(self, engine: Engine, plans: list[PlanDone], startup: float) -> None:
        self._engine, self._plans, self._startup = engine, plans, startup
        self._kept: list[PlanDone] = []

    def clip(self, seed: int, sampling: dict[str, Any], *, counts: bool) -> None:
        self._plans.clear()
        self._engine.submit(f"a red circle {seed}", sampling={"seed": seed, **sampling}).wait()
        if counts:
            self._kept += self._plans

    def side(self) -> Side:
        steps = [plan for plan in self._kept if plan.op == "step"]
        sent: dict[str, float] = {}
        for plan in steps:
            for name, count in plan.ranks[0].traffic.items():
                sent[name] = sent.get(name, 0.0) + count / len(steps)
        decodes = [plan for plan in self._kept if plan.op == "decode"]
        ranks = self._engine.groups()[0].ranks
        return Side(
            startup=self._startup,
            step=Spread.of([plan.finished - plan.started for plan in steps]),
            decode=Spread.of([plan.finished - plan.started for plan in decodes]),
            sent_a_step=sent,
            weights=ranks[0].weights,
            peak_memory=[rank.peak_memory for rank in ranks],
        )


def model(directory: Path) -> Path:
    """Wan of 8 layers, width 512, and a UMT5 of 32,000 words: 40 million parameters or so."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(builtin_model("shapes") / "tokenizer")
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=32_000, d_model=256, d_kv=64, d_ff=512, num_layers=4, num_heads=4)
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=8,
        attention_head_dim=64,
        ffn_dim=1536,
        num_layers=8,
        text_dim=256,
        freq_dim=256,
    )
    vae = AutoencoderKLWan(base_dim=32, z_dim=16)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
    ).save_pretrained(directory)
    return directory


@contextmanager
def engine(path: str, device: str, layout: dict[str, Any]) -> Iterator[Running]:
    """An engine with a thread a rank."""
    plans: list[PlanDone] = []
    config = build_config(
        model_path=path, device=device, cpu_threads=1, log_level="error", **layout
    )
    began = time.monotonic()
    with Engine(config, on_plan=plans.append) as started:
        yield Running(started, plans, time.monotonic() - began)


def compare(name: str, path: str, device: str, sampling: dict[str, Any], rounds: int) -> Comparison:
    """One layout against one rank, in turns."""
    with ExitStack() as stack:
        one = stack.enter_context(engine(path, device, {}))
        several = stack.enter_context(engine(path, device, LAYOUTS[name]))
        for number in range(_WARM_UP + rounds):
            for side in (one, several) if number % 2 else (several, one):
                side.clip(number, sampling, counts=number >= _WARM_UP)
        mine, theirs = one.side(), several.side()
    return Comparison(
        layout=name,
        one=mine,
        several=theirs,
        step_ratio=median_ratio(mine.step, theirs.step),
        decode_ratio=median_ratio(mine.decode, theirs.decode),
    )


def median_ratio(one: Spread, other: Spread) -> float:
    return one.p50 / other.p50


def line(found: Comparison) -> str:
    """For people."""
    one, several = found.one, found.several
    return (
        f"{found.layout}: step {one.step.p50 * 1e3:.0f} -> {several.step.p50 * 1e3:.0f} ms "
        f"({found.step_ratio:.2f}x), decode {one.decode.p50 * 1e3:.0f} -> "
        f"{several.decode.p50 * 1e3:.0f} ms ({found.decode_ratio:.2f}x), "
        f"started in {several.startup:.0f} s"
    )


def main(
    rounds: Rounds = 5,
    size: Size = 256,
    frames: Frames = 9,
    device: common.Device = "cpu",
    model_path: Annotated[str, typer.Option(help="Another Wan; by default random weights.")] = "",
    name: common.Name = "ranks",
) -> None:
    """One rank against several."""
    sampling = {
        "width": size,
        "height": size,
        "num_frames": frames,
        "num_inference_steps": STEPS,
        "max_sequence_length": 64,
    }
    found = []
    with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
        path = model_path or str(model(Path(directory) / "wan"))
        for layout in LAYOUTS:
            comparison = compare(layout, path, device, sampling, rounds)
            found.append(comparison)
            common.console.print(line(comparison))
    common.save(name, {"sampling": sampling, "rounds": rounds, "comparisons": found})


if __name__ == "__main__":
    common.run(main)
