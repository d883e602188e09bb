"""Server-sent events as a client reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2


def blocks(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """The blocks of a stream that have data: `id`, `event` and the decoded `data`."""
    block: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if "data" in block:
                yield {**block, "data": json.loads(block["data"])}
            block = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            block[name] = value
