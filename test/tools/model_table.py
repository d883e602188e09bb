"""Writes the table of models in `docs/models.md`: what each pipeline can do here.

Run in `test/`: `python -m tools.model_table [--write]`. Every cell is asked of the code: of the
cards, of the layouts that are refused, of the classes. `test/unit/models/test_model_table.py` holds
the page to it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import diffusers
from diffusers.loaders.lora_base import LoraBaseMixin

from fakes.cases import Case, Checkpoints, card_of
from fakes.pipelines import CASES
from safelight import config as configuration
from safelight.models.registry import load_capabilities
from safelight.parallel import vaes
from safelight.parallel.layout import Layout, refusals
from tools import documents

NAME = "models.md"
HEADINGS = (
    "pipeline",
    "family",
    "task",
    "batching",
    "ulysses",
    "ring",
    "cfg",
    "tp",
    "vae-parallel",
    "mask",
    "LoRA",
)
YES, NO = "yes", "–"


def row(case: Case, path: Path) -> tuple[str, ...]:
    """What one pipeline can do in one task."""
    card = card_of(path)
    config = configuration.build({"model_path": str(path), "device": "cpu"})
    model = load_capabilities(config)

    def can(**degrees: int) -> bool:
        return not refusals(Layout(**degrees), model)

    return (
        case.name,
        card.family,
        case.task,
        _word(not case.solo),
        _word(can(ulysses=2)),
        _word(can(ring=2)),
        _word(can(cfg=2)),
        _word(bool(model.encoder_heads)),
        _word(not vaes.why_whole(vaes.read(path)) and not case.solo),
        _word("inpainting" in card.tasks),
        _word(loras(path)),
    )


def loras(path: Path) -> bool:
    """Whether diffusers can load adapters into this pipeline."""
    name = json.loads((path / "model_index.json").read_text("utf-8"))["_class_name"]
    return issubclass(getattr(diffusers, name), LoraBaseMixin)


def _word(can: bool) -> str:
    return YES if can else NO


def table(checkpoints: Checkpoints) -> str:
    return documents.table(HEADINGS, *(row(case, checkpoints.of(case)) for case in CASES))


def document() -> str:
    page = (documents.DOCS / NAME).read_text("utf-8")
    with tempfile.TemporaryDirectory(prefix="safelight-") as directory:
        return documents.between(page, "models", table(Checkpoints(Path(directory))))


if __name__ == "__main__":
    documents.main(NAME, document)
