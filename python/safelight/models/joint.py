"""Cards of transformers that attend to words, image and reference pictures in one sequence.

Needs no torch.
"""

from __future__ import annotations

from safelight.errors import InvalidRequest
from safelight.models.card import NOTHING, ModelCard
from safelight.request import Inputs, Picture, Sampling, Task

Size = tuple[int, int]
"""(width, height) in pixels."""


class JointCard(ModelCard, frozen=True, kw_only=True):
    """A model whose ranks share the tokens of the prompt, and those of the image with the
    reference pictures behind them: `flux`, `flux2` and `qwen_image`."""

    max_text: int
    """Most prompt tokens."""

    def references(self, inputs: Inputs) -> tuple[Size, ...]:
        """Sizes at which the transformer sees the input pictures beside the image."""
        return ()

    def tokens(self, sampling: Sampling, inputs: Inputs = NOTHING) -> int:
        _, rows, columns = self.patch
        seen = [(width // columns) * (height // rows) for width, height in self.references(inputs)]
        return super().tokens(sampling) + sum(seen)

    def batch_key(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> str:
        """Whatever the task: what the transformer sees must be of one shape."""
        return f"{self._seen_key(sampling, inputs)}/{sampling.max_sequence_length}"

    def _seen_key(self, sampling: Sampling, inputs: Inputs) -> str:
        seen = "".join(f"+{width}x{height}" for width, height in self.references(inputs))
        return f"{self.name}/{sampling.height}x{sampling.width}{seen}"

    def check(self, sampling: Sampling, task: Task, inputs: Inputs = NOTHING) -> None:
        super().check(sampling, task, inputs)
        self._check_length(sampling, self.max_text)
        self._check_text(sampling.max_sequence_length)

    def _check_text(self, length: int) -> None:
        """That the ranks, which share a prompt's tokens as well as those of the image, can."""
        if not self._shares(length):
            how = "evenly " if self.even_shards else ""
            up = -(-length // self.shards) * self.shards
            raise InvalidRequest(
                f"'max_sequence_length' is {length}, which {self.shards} ranks (--ulysses-degree × "
                f"--ring-degree) cannot share {how}here. Nearest: "
                f"{up if up <= self.max_text else up - self.shards}.",
                param="max_sequence_length",
            )

    def _refuse_picture(self, picture: Picture, what: str) -> None:
        raise InvalidRequest(
            f"An input image is {picture.width}x{picture.height}; {self.name} takes {what}.",
            param="image",
        )
