"""The cost model: seconds per plan, from the tokens of one sample and the size of the batch.

A line `seconds = fixed + slope * tokens * batch`, fitted online by recursive least squares with
forgetting (Haykin, Adaptive Filter Theory, ch. 10) and primed by the ranks' warm-up, times a
correction for every size that was seen (attention, for one, is not linear in tokens). The fixed
part is what batching saves: launches and weight reads. Batch sizes are not learnt one by one: the
first forward of each is slow, and one that looks bad would never be tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_FORGETTING = 0.995
_WEIGHT = 0.1  # of a measurement in a correction
_SURPRISE = 3.0  # a measurement counts as at most so many times the prediction
_PRIOR_FIXED = 0.02  # seconds; before any measurement, batching looks worth trying
_PRIOR_SLOPE = 1e-5  # seconds per token
_UNIT = 1000.0  # tokens; keeps the two unknowns of similar size
_LEAST = 1e-6  # seconds
_LARGEST = 2.0  # trace of the inverse information; that of the prior
_NOISE = 0.1  # relative standard deviation of a measurement


@dataclass(slots=True)
class _Line:
    """`fixed + slope * x` by recursive least squares; `p` is the inverse information matrix."""

    fixed: float = _PRIOR_FIXED
    slope: float = _PRIOR_SLOPE * _UNIT
    p: tuple[float, float, float] = (1.0, 0.0, 1.0)
    """(p11, p12, p22) of a symmetric 2x2 matrix"""

    def add(self, x: float, seconds: float) -> None:
        # A relative error counts the same for small and large forwards.
        weight = 1.0 / (_NOISE * max(seconds, _LEAST)) ** 2
        p11, p12, p22 = self.p
        v1, v2 = p11 + p12 * x, p12 + p22 * x
        denominator = _FORGETTING / weight + v1 + v2 * x
        error = seconds - (self.fixed + self.slope * x)
        self.fixed += v1 / denominator * error
        self.slope += v2 / denominator * error
        p11, p12, p22 = (
            p11 - v1 * v1 / denominator,
            p12 - v1 * v2 / denominator,
            p22 - v2 * v2 / denominator,
        )
        # Forgetting only while the matrix is small: where one size is all there is, the direction
        # that gets no news would grow without bound.
        scale = 1.0 if (p11 + p22) / _FORGETTING > _LARGEST else 1.0 / _FORGETTING
        self.p = (p11 * scale, p12 * scale, p22 * scale)

    def __call__(self, x: float) -> float:
        return max(max(self.fixed, 0.0) + max(self.slope, 0.0) * x, _LEAST)


@dataclass
class CostModel:
    """Predicted seconds of encode, step and decode plans."""

    _lines: dict[str, _Line] = field(default_factory=dict)
    _corrections: dict[tuple[str, int], float] = field(default_factory=dict)

    def observe(self, op: str, tokens: int, batch: int, seconds: float) -> None:
        """Learn that one `op` plan of `batch` samples of `tokens` tokens each took `seconds`."""
        key, x = (op, tokens), tokens * batch / _UNIT
        line = self._line(op)
        correction = self._corrections.get(key)
        if correction is not None:
            seconds = min(seconds, _SURPRISE * correction * line(x))
        line.add(x, seconds)
        ratio = seconds / line(x)
        if correction is None:
            correction = 1.0
        self._corrections[key] = correction + _WEIGHT * (ratio - correction)

    def predict(self, op: str, tokens: int, batch: int = 1) -> float:
        """Seconds of one such plan; always positive."""
        correction = self._corrections.get((op, tokens), 1.0)
        return max(correction * self._line(op)(tokens * batch / _UNIT), _LEAST)

    def _line(self, op: str) -> _Line:
        if (line := self._lines.get(op)) is None:
            line = self._lines[op] = _Line()
        return line
