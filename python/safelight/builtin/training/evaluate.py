"""How well a model folder does what it is asked, judged automatically.

    python -m safelight.builtin.training.evaluate MODEL_DIR [--sheet PNG] [--json FILE]

Clips come from an unmodified ``diffusers.WanPipeline``, in float32 on the CPU. All
prompts but those of one row are combinations the model was never trained on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from . import world
from .judge import adherence
from .text import PIPELINE_KEYS, SERVED_KEYS

Row = dict[str, Any]
_FIELDS = ("color", "background", "shape", "motion", "all")
_BATCH = 15


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    scenes: list[world.Scene]
    seed: int
    steps: int = 10
    frames: int = 9
    guidance: float = 3.0
    paraphrased: bool = False
    keys: int = PIPELINE_KEYS
    """`max_sequence_length`: what the prompt is padded to."""

    def prompts(self) -> list[str]:
        """The captions that are asked for."""
        if not self.paraphrased:
            return [world.canonical_caption(scene) for scene in self.scenes]
        rng = random.Random(self.seed)
        return [world.paraphrase(scene, rng) for scene in self.scenes]


def load_pipeline(folder: Path) -> WanPipeline:
    """The model as any diffusers user would load it."""
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: WanPipeline, case: Case) -> list[Tensor]:
    """Clips [3, frames, 64, 64] in [-1, 1] of a case."""
    prompts = case.prompts()
    clips: list[Tensor] = []
    for start in range(0, len(prompts), _BATCH):
        batch = prompts[start : start + _BATCH]
        seeds = range(case.seed + start, case.seed + start + len(batch))
        frames = pipeline(
            prompt=batch,
            height=world.SIZE,
            width=world.SIZE,
            num_frames=case.frames,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            max_sequence_length=case.keys,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).frames
        clips += list(frames.float().transpose(1, 2) * 2 - 1)
    return clips


def run_case(pipeline: WanPipeline, case: Case) -> Row:
    """Generate and judge the clips of a case."""
    start = time.perf_counter()
    clips = generate(pipeline, case)
    seconds = (time.perf_counter() - start) / len(clips)
    scores = adherence(clips, case.scenes, motion=case.frames > 1)
    return {"case": case.name, "clips": len(clips), **scores, "seconds": round(seconds, 3)}


def cases() -> list[Case]:
    """All rows of the table that need the model."""
    held_out = world.all_held_out_scenes()
    trained = world.sample_scenes(len(held_out), random.Random(55))
    return [
        Case("held-out, 9 frames, 10 steps", held_out * 2, 0),
        Case("held-out, 1 frame (still)", held_out * 2, 1000, frames=1),
        Case("held-out, 9 frames, text of 32", held_out * 2, 10_000, keys=SERVED_KEYS),
        Case("held-out, 1 frame, text of 32", held_out * 2, 11_000, frames=1, keys=SERVED_KEYS),
        Case("held-out, 4 steps, text of 32", held_out, 12_000, steps=4, keys=SERVED_KEYS),
        Case("held-out, 5 frames", held_out, 2000, frames=5),
        Case("held-out, 13 frames", held_out, 3000, frames=13),
        Case("held-out, 4 steps", held_out, 4000, steps=4),
        Case("held-out, 6 steps", held_out, 5000, steps=6),
        Case("held-out, 20 steps", held_out, 6000, steps=20),
        Case("held-out, paraphrased", held_out, 7000, paraphrased=True),
        Case("held-out, guidance 1", held_out, 8000, guidance=1.0),
        Case("trained combinations", trained, 9000),
    ]


def judge_rows(count: int = 200) -> list[Row]:
    """The judge's own score on drawn clips."""
    rows = []
    for frames in (1, 9):
        scenes = world.sample_scenes(count, random.Random(frames), held_out=True)
        clips = world.render(scenes, frames, torch.Generator().manual_seed(frames))
        scores = adherence(list(clips), scenes, motion=frames > 1)
        name = f"judge on drawn clips, {frames} frame{'s' if frames > 1 else ''}"
        rows.append({"case": name, "clips": count, **scores})
    return rows


@torch.inference_mode()
def reconstruction_row(pipeline: WanPipeline, count: int = 60) -> Row:
    """Drawn clips through the VAE and back."""
    scenes = world.sample_scenes(count, random.Random(3), held_out=True)
    clips = world.render(scenes, 9, torch.Generator().manual_seed(3))
    latents = pipeline.vae.encode(clips).latent_dist.mode()
    made = pipeline.vae.decode(latents).sample
    psnr = 10 * torch.log10(4 / (made - clips).square().mean()).item()
    name = f"VAE reconstructions, 9 frames ({psnr:.1f} dB)"
    return {"case": name, "clips": count, **adherence(list(made), scenes), "psnr": round(psnr, 2)}


def latency_row(pipeline: WanPipeline) -> Row:
    """Seconds of one clip on its own with default settings (the better of two)."""
    scene = world.all_held_out_scenes()[:1]
    rows = [run_case(pipeline, Case("one clip on its own", scene, seed)) for seed in (0, 1)]
    return min(rows, key=lambda row: row["seconds"])


def evaluate(pipeline: WanPipeline) -> list[Row]:
    """All rows of the table."""
    rows = [*judge_rows(), reconstruction_row(pipeline), latency_row(pipeline)]
    return rows + [run_case(pipeline, case) for case in cases()]


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| | clips | colour | background | shape | motion | all | s/clip |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        scores = " | ".join(f"{row[field]:.2f}" if field in row else "–" for field in _FIELDS)
        seconds = f"{row['seconds']:.2f}" if "seconds" in row else "–"
        lines.append(f"| {row['case']} | {row['clips']} | {scores} | {seconds} |")
    return "\n".join(lines)


def contact_sheet(pipeline: WanPipeline, path: Path, columns: int = 3) -> None:
    """A picture of all held-out combinations, five frames of each, under its prompt."""
    case = Case("sheet", world.all_held_out_scenes(), 0)
    clips, prompts = generate(pipeline, case), case.prompts()
    label, gap = 13, 6
    width, height = 5 * world.SIZE + gap, world.SIZE + label
    rows = -(-len(clips) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        left, top = index % columns * width, index // columns * height
        strip = torch.cat([clip[:, frame] for frame in range(0, case.frames, 2)], dim=2)
        pixels = ((strip + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
        draw.text((left + 2, top), prompt, fill="black")
        sheet.paste(Image.fromarray(pixels.numpy()), (left, top + label))
    sheet.quantize(256).save(path, optimize=True)  # a third of the size, no visible loss


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m safelight.builtin.training.evaluate")
    parser.add_argument("model", type=Path, help="a model folder in the diffusers layout")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (PNG)")
    parser.add_argument("--json", type=Path, help="write the table as JSON")
    parser.add_argument("--threads", type=int, help="PyTorch threads")
    options = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    pipeline = load_pipeline(options.model)
    rows = evaluate(pipeline)
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.sheet:
        contact_sheet(pipeline, options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
