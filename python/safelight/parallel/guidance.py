"""CFG parallelism: the conditional and the unconditional forward on different ranks."""

from __future__ import annotations

import torch

from safelight.parallel.mesh import Mesh


class Guidance:
    """Which half this rank computes, and the exchange afterwards."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.split = mesh.layout.cfg > 1
        """Whether the halves are on different ranks."""
        self.unconditional = self.split and mesh.index("cfg") == 1
        """Whether this rank computes the unconditional half."""

    def exchange(self, prediction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(conditional, unconditional) predictions from this rank's own; the same bits everywhere.

        Every rank along the axis must call it with a tensor of the same shape.
        """
        conditional, unconditional = self._mesh.gather(prediction, "cfg")
        return conditional, unconditional
