"""A bounded cache of what prompts and pictures were encoded to, keyed by a hash of them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class PromptCache:
    """Least recently used embeddings by content hash; they are shared, never written to.

    Values are tensors, or tuples of them where they come from one call.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._values: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value for `key`, from the cache or freshly computed. Same bits either way."""
        digest = hashlib.sha256(repr(key).encode()).digest()
        if digest in self._values:
            self.hits += 1
            self._values.move_to_end(digest)
            found: T = self._values[digest]
            return found
        self.misses += 1
        value = compute()
        if self._entries:
            self._values[digest] = value
            if len(self._values) > self._entries:
                self._values.popitem(last=False)
        return value
