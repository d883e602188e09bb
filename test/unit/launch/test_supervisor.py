"""What the supervisor leaves behind when it cannot begin: nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from safelight.config import build
from safelight.errors import ConfigError
from safelight.launch.supervisor import Supervisor


@pytest.mark.parametrize(
    "settings",
    [{"num_gpus": 3, "ulysses_degree": 2}, {"device": "cpu", "gpu_ids": "0"}],
)
def test_a_refused_layout_leaves_no_directory(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not tmp_path: a long path would not be used for sockets.
    with tempfile.TemporaryDirectory(prefix="safelight-test-", dir="/tmp") as base:
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        with pytest.raises(ConfigError):
            Supervisor(build({"api_key": "hush", **settings}), http=True)
        assert list(Path(base).iterdir()) == []
