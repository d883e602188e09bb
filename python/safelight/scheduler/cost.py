"""The cost model: seconds per plan, from the tokens of one sample and the size of the batch.

What has been measured often enough at exactly these numbers is believed as it is (an exponential
mean). Everywhere else a line `seconds = fixed + slope * tokens * batch` is used, fitted online by
recursive least squares with forgetting (Haykin, Adaptive Filter Theory, ch. 10) and primed by the
ranks' warm-up. The fixed part is what batching saves: launches and weight reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_FORGETTING = 0.995
_EXACT_AFTER = 3  # observations
_MEAN_WEIGHT = 0.2
_PRIOR_FIXED = 0.02  # seconds; before any measurement, batching looks worth trying
_PRIOR_SLOPE = 1e-5  # seconds per token
_UNIT = 1000.0  # tokens; keeps the two unknowns of similar size
_LEAST = 1e-6  # seconds
_LARGEST = 100.0  # trace of the inverse information


@dataclass(slots=True)
class _Mean:
    value: float
    count: int = 1

    def add(self, seconds: float) -> None:
        self.count += 1
        self.value += max(_MEAN_WEIGHT, 1 / self.count) * (seconds - self.value)


@dataclass(slots=True)
class _Line:
    """`fixed + slope * x` by recursive least squares; `p` is the inverse information matrix."""

    fixed: float = _PRIOR_FIXED
    slope: float = _PRIOR_SLOPE * _UNIT
    p: tuple[float, float, float] = (1.0, 0.0, 1.0)
    """(p11, p12, p22) of a symmetric 2x2 matrix"""

    def add(self, x: float, seconds: float) -> None:
        # Weighting by 1/size makes a relative error count the same for small and large forwards.
        weight = 1.0 / (1.0 + x * x)
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
        return max(self.fixed, 0.0) + max(self.slope, 0.0) * x


@dataclass
class CostModel:
    """Predicted seconds of encode, step and decode plans."""

    _lines: dict[str, _Line] = field(default_factory=dict)
    _means: dict[tuple[str, int, int], _Mean] = field(default_factory=dict)

    def observe(self, op: str, tokens: int, batch: int, seconds: float) -> None:
        """Learn that one `op` plan of `batch` samples of `tokens` tokens each took `seconds`."""
        self._lines.setdefault(op, _Line()).add(tokens * batch / _UNIT, seconds)
        key = (op, tokens, batch)
        if (mean := self._means.get(key)) is None:
            self._means[key] = _Mean(seconds)
        else:
            mean.add(seconds)

    def predict(self, op: str, tokens: int, batch: int = 1) -> float:
        """Seconds of one such plan; always positive."""
        mean = self._means.get((op, tokens, batch))
        if mean is not None and mean.count >= _EXACT_AFTER:
            return max(mean.value, _LEAST)
        line = self._lines.get(op)
        if line is None:
            line = self._lines[op] = _Line()
        return max(line(tokens * batch / _UNIT), _LEAST)
