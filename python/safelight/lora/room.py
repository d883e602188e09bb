"""How much of a device merged weights may have."""

from __future__ import annotations

import math

import torch


class Room:
    """What is left on a device beside the weights and the work with them."""

    def __init__(self) -> None:
        self._work: int | None = None

    def left(self, device: torch.device) -> float:
        """Bytes to be had; what the host has is the system's business.

        First asked for when nothing is merged yet: what forwards have taken until then, those of
        the warm-up among them, stays theirs. Otherwise weights would fit, and no sample after them.
        """
        if device.type != "cuda":
            return math.inf
        allocated = torch.cuda.memory_allocated(device)
        if self._work is None:
            self._work = torch.cuda.max_memory_allocated(device) - allocated
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - allocated - self._work
