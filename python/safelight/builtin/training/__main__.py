"""Trains the built-in model from nothing: one command, seeded, resumable.

    python -m safelight.builtin.training --out DIR [--work DIR]

The VAE first; it has to pass a gate before the transformer starts. Then the latents
are cached, the transformer and the text encoder trained jointly, the model exported
and evaluated. Checkpoints go to the work folder every couple of minutes; the same
command goes on from them. All schedules and random draws depend on the step alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from .checkpoint import Log
from .denoiser import DenoiserTraining, cache_latents, train_denoiser
from .evaluate import contact_sheet, evaluate, load_pipeline, markdown
from .export import export
from .vae import VaeTraining, reconstruct, train_vae

VAE_GATE = 0.95


class GateError(RuntimeError):
    """A stage is not good enough for the next one to start."""


def check_vae(vae: AutoencoderKLWan, log: Log) -> None:
    """Raise unless the judge still recognises 95% of reconstructed held-out clips."""
    for frames in (1, 5, 9, 13):
        table = reconstruct(vae, 60, frames)[0]
        log.line(f"vae gate, {frames} frames: {table}")
        if table["all"] < VAE_GATE:
            raise GateError(f"reconstructions of {frames} frames: {table}; {VAE_GATE} is needed")


def train(out: Path, work: Path, vae_steps: int, transformer_steps: int) -> None:
    """Every stage in turn; finished stages are loaded, not repeated."""
    work.mkdir(parents=True, exist_ok=True)
    log = Log(work / "training.log")
    vae_settings = VaeTraining(steps=vae_steps)
    settings = DenoiserTraining(steps=transformer_steps)
    log.line(f"settings: {json.dumps([asdict(vae_settings), asdict(settings)])}")
    vae = train_vae(work, vae_settings)
    check_vae(vae, log)
    cache = cache_latents(vae, work, settings)
    transformer, text_encoder = train_denoiser(vae, cache, work, settings)
    export(out, vae, (cache.mean, cache.std), transformer, text_encoder)
    log.line(f"exported to {out}")
    pipeline = load_pipeline(out)
    report = evaluate(pipeline)
    log.line(markdown(report))
    (work / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    contact_sheet(pipeline, work / "sheet.png")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m safelight.builtin.training")
    parser.add_argument("--out", type=Path, required=True, help="where the model is written")
    parser.add_argument("--work", type=Path, help="checkpoints and logs (default: OUT.work)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--vae-steps", type=int, default=VaeTraining.steps)
    parser.add_argument("--transformer-steps", type=int, default=DenoiserTraining.steps)
    options = parser.parse_args(arguments)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    work = options.work or options.out.with_name(options.out.name + ".work")
    train(options.out, work, options.vae_steps, options.transformer_steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
