"""The cost model: seconds per plan, from the tokens of one sample and the size of the batch.

For every size that was seen, a line over the batch, `seconds = fixed + slope * batch`; the fixed
part is what batching saves: launches and weight reads. For a size that was not, a line over all
tokens of the batch, from all sizes. Both are fitted online by a Kalman filter (Haykin, Adaptive
Filter Theory, ch. 10) and primed by the ranks' warm-up. Batch sizes are not learnt one by one: the
first forward of each is slow, and one that looks bad would never be tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

_NOISE = 0.1  # relative standard deviation of a measurement
_DRIFT = 0.02  # relative standard deviation of the change of the truth between two
_SURPRISE = 3.0  # a measurement counts as at most so many times the prediction
_LEAST = 1e-6  # seconds
_UNIT = 1000.0  # tokens; keeps the two unknowns of similar size


@dataclass(slots=True)
class Line:
    """`fixed + slope * x`, fitted online. Before any measurement it is a guess."""

    fixed: float
    slope: float
    _known: bool = False
    _p: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Covariance, a symmetric 2x2 matrix as (p11, p12, p22), seconds squared."""

    def __call__(self, x: float) -> float:
        fixed, slope = self.fixed, self.slope
        if fixed > 0.0 and slope > 0.0:
            return fixed + slope * x
        return max(max(fixed, 0.0) + max(slope, 0.0) * x, _LEAST)

    def add(self, x: float, seconds: float) -> None:
        """Learn one measurement. A relative error counts the same for small and large ones."""
        seconds = max(seconds, _LEAST)
        if self._known:
            self._update(x, seconds)
        else:
            self._begin(seconds / self(x))

    def _begin(self, ratio: float) -> None:
        """The first measurement says how large things are, not how they divide."""
        self._known = True
        self.fixed *= ratio
        self.slope *= ratio
        spread = (self.fixed + self.slope) ** 2
        self._p = (spread, 0.0, spread)

    def _update(self, x: float, seconds: float) -> None:
        p11, p12, p22 = self._p
        v1, v2 = p11 + p12 * x, p12 + p22 * x
        denominator = (_NOISE * seconds) ** 2 + v1 + v2 * x
        error = seconds - (self.fixed + self.slope * x)
        self.fixed += v1 / denominator * error
        self.slope += v2 / denominator * error
        # The truth may have moved where it is being measured, and only there is that assumed: with
        # one batch size for hours, doubt about all others would grow without bound.
        drift = (_DRIFT * seconds / (1.0 + x * x)) ** 2
        self._p = (
            p11 - v1 * v1 / denominator + drift,
            p12 - v1 * v2 / denominator + drift * x,
            p22 - v2 * v2 / denominator + drift * x * x,
        )


@dataclass
class CostModel:
    """Predicted seconds of encode, step and decode plans."""

    _by_size: dict[tuple[str, int], Line] = field(default_factory=dict)
    """Over the batch, by operation and tokens."""
    _by_tokens: dict[str, Line] = field(default_factory=dict)
    """Over tokens times batch, by operation."""

    def observe(self, op: str, tokens: int, batch: int, seconds: float) -> None:
        """Learn that one `op` plan of `batch` samples of `tokens` tokens each took `seconds`."""
        line = self._by_size.get((op, tokens))
        if line is None:
            general = self._general(op)
            # Of an unseen size only the sum is known; that much of it is fixed is to be found out.
            line = Line(general.fixed, general.slope * tokens / _UNIT)
            self._by_size[op, tokens] = line
        else:
            seconds = min(seconds, _SURPRISE * line(batch))
        line.add(batch, seconds)
        self._general(op).add(tokens * batch / _UNIT, seconds)

    def predict(self, op: str, tokens: int, batch: int = 1) -> float:
        """Seconds of one such plan; always positive."""
        return self.over_batch(op, tokens)(batch)

    def over_batch(self, op: str, tokens: int) -> Callable[[float], float]:
        """Seconds as a function of the batch, for one size."""
        line = self._by_size.get((op, tokens))
        if line is not None:
            return line
        general = self._general(op)
        return lambda batch: general(tokens * batch / _UNIT)

    def _general(self, op: str) -> Line:
        if (line := self._by_tokens.get(op)) is None:
            # A guess for the very first moment: batching looks worth trying.
            line = self._by_tokens[op] = Line(fixed=0.02, slope=0.01)
        return line
