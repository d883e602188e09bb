"""A bounded cache of what prompts and pictures were encoded to, keyed by a hash of them."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


_caches: weakref.WeakSet[PromptCache] = weakref.WeakSet()


def flush() -> None:
    """Empty every cache of this process."""
    for cache in _caches:
        cache.clear()


class PromptCache:
    """Least recently used embeddings by content hash; they are shared, never written to.

    Values are tensors, or tuples of them where they come from one call.
    """

    def __init__(self, entries: int, circumstances: Callable[[], Hashable] = tuple) -> None:
        """`circumstances` tells what the values depend on besides their keys: adapters."""
        self._entries = entries
        self._circumstances = circumstances
        self._values: OrderedDict[bytes, Any] = OrderedDict()
        self.hits = 0
        self.misses = 0
        _caches.add(self)

    def clear(self) -> None:
        self._values.clear()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value for `key`, from the cache or freshly computed. Same bits either way."""
        digest = hashlib.sha256(repr((key, self._circumstances())).encode()).digest()
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
