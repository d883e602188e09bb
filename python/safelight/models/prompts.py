"""A bounded cache of prompt embeddings, keyed by a hash of what was encoded."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PromptCache:
    """Least recently used embeddings by content hash; tensors are shared, never written to."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._tensors: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor for `key`, from the cache or freshly computed. Same bits either way."""
        digest = hashlib.sha256(repr(key).encode()).digest()
        if digest in self._tensors:
            self.hits += 1
            self._tensors.move_to_end(digest)
            return self._tensors[digest]
        self.misses += 1
        tensor = compute()
        if self._entries:
            self._tensors[digest] = tensor
            if len(self._tensors) > self._entries:
                self._tensors.popitem(last=False)
        return tensor
