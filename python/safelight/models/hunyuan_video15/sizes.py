"""The sizes that HunyuanVideo 1.5 was trained on, and which of them suits a picture.

The same as `HunyuanVideo15ImageProcessor.calculate_default_height_width`, which needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator

Size = tuple[int, int]
"""(width, height)"""

STEEPEST = 4.0  # no side is longer than this many of the other


def closest(size: Size, target: int, grid: int) -> Size:
    """Of the sizes with about `target` x `target` pixels, all multiples of `grid`, the one shaped
    most like `size` and no more elongated."""
    wanted = size[1] / size[0]
    shapes = [(round(height / width, 5), (width, height)) for width, height in _sizes(target, grid)]
    able = [
        shape for shape in shapes if (shape[0] <= wanted if wanted >= 1 else shape[0] >= wanted)
    ]
    return min(able, key=lambda shape: abs(shape[0] - wanted))[1]


def _sizes(target: int, grid: int) -> Iterator[Size]:
    """From the tallest to the widest, each as large as the number of patches allows."""
    patches = round((target / grid) ** 2)
    rows, columns = patches, 1
    while rows > 0:
        if max(rows, columns) / min(rows, columns) <= STEEPEST:
            yield columns * grid, rows * grid
        if (columns + 1) * rows <= patches:
            columns += 1
        else:
            rows -= 1
