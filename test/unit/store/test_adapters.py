"""Copies of adapters on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.store.adapters import AdapterStore


def test_what_cannot_be_kept_takes_no_place(tmp_path: Path) -> None:
    source = tmp_path / "style.safetensors"
    source.write_bytes(b"weights")
    store = AdapterStore(tmp_path / "adapters")
    part, digest = store.take(source)
    store.place(digest).mkdir()  # in the way
    with pytest.raises(OSError):
        store.keep(part, digest)
    assert list(store.root.iterdir()) == [store.place(digest)]
