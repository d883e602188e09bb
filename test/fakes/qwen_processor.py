"""A processor of text and pictures for tiny Qwen2.5-VL encoders.

transformers' own `Qwen2VLProcessor` has a processor of videos, which needs torchvision. diffusers
writes the module's name into `model_index.json` and imports it when it loads the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE = "<|image_pad|>"


class TinyQwenProcessor(ProcessorMixin):
    """What `Qwen2VLProcessor` does with pictures and text."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: Any, **options: Any) -> BatchFeature:
        pictures = self.image_processor(images=images, return_tensors="pt")
        merged = self.image_processor.merge_size**2
        counts = iter(int(grid.prod()) // merged for grid in pictures["image_grid_thw"])
        filled = [self._filled(one, counts) for one in text]
        return BatchFeature({**self.tokenizer(filled, **options), **pictures})

    @staticmethod
    def _filled(text: str, counts: Any) -> str:
        """As many tokens for each picture as its patches take."""
        first, *rest = text.split(IMAGE)
        return first + "".join(IMAGE * next(counts) + part for part in rest)

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **options: Any) -> Any:
        where = Path(pretrained_model_name_or_path)
        return cls(
            Qwen2VLImageProcessorPil.from_pretrained(where),
            PreTrainedTokenizerFast.from_pretrained(where),
        )
