"""`safelight pull` against a hub on this machine, over real HTTP, in real processes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.hub import COMMIT, Hub, etag, serving
from safelight.builtin import builtin_model

MODEL = "someone/tiny"
LARGE = "transformer/diffusion_pytorch_model.safetensors"
CHUNK = 10 * 2**20
"""What huggingface_hub writes at once."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With what real repositories have beside the components."""
    copy = Path(shutil.copytree(builtin_model("shapes"), tmp_path / "repository"))
    (copy / "wan.safetensors").write_bytes(b"a copy in one file")
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    return copy


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with serving({MODEL: model}) as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "huggingface"


def environment(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    dropped = ("SAFELIGHT_", "HF_", "HUGGING")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **variables}


def pull(
    hub: Hub, home: Path, *arguments: str, limit: int | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`limit`: bytes a file may have, for the process."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "safelight", "pull", *(arguments or [MODEL])],
        env=environment(hub, home, **variables),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )


def blobs(home: Path) -> Path:
    """Where the cache keeps the files of the model, by what is in them."""
    return home / "hub" / f"models--{MODEL.replace('/', '--')}" / "blobs"


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert done.returncode in (1, 2), done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_what_is_needed_comes_and_stays(hub: Hub, home: Path, model: Path) -> None:
    done = pull(hub, home)
    assert (done.returncode, done.stderr) == (0, "")
    directory = Path(done.stdout.strip())
    assert directory.name == COMMIT
    found = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert found == set(hub.files(MODEL)) - {
        "MODEL_CARD.md",
        "wan.safetensors",
        "transformer/diffusion_pytorch_model.bin",
    }
    assert (directory / LARGE).read_bytes() == (model / LARGE).read_bytes()

    hub.requests.clear()
    again = pull(hub, home)
    assert again.stdout == done.stdout
    assert not [path for method, path, _ in hub.requests if "/resolve/" in path and method == "GET"]

    hub.requests.clear()
    assert pull(hub, home, HF_HUB_OFFLINE="1").stdout == done.stdout
    assert hub.requests == []
    assert pull(hub, home, HF_ENDPOINT="http://127.0.0.1:9").stdout == done.stdout


def test_a_cached_model_runs_without_a_network(hub: Hub, home: Path, tmp_path: Path) -> None:
    """Found by its name; asks nobody, even where it could."""
    pull(hub, home)
    hub.requests.clear()
    script = (
        "import sys; from safelight import config; from safelight.models.sources import prepare;"
        "from safelight.models.registry import load_card;"
        f"print(load_card(prepare(config.build({{'model_path': {MODEL!r}}}), None)).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(hub, home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("shapes", "")
    assert hub.requests == []


def test_a_revision_is_fetched_or_refused(hub: Hub, home: Path) -> None:
    assert pull(hub, home, MODEL, "--revision", COMMIT).returncode == 0
    assert "no revision 'v9'" in refusal(pull(hub, home, MODEL, "--revision", "v9"))


def test_an_unknown_model_is_refused(hub: Hub, home: Path) -> None:
    assert "no model someone/else" in refusal(pull(hub, home, "someone/else"))
    assert "organisation/name" in refusal(pull(hub, home, "/a/directory"))


def test_a_gated_model_says_what_to_do(hub: Hub, home: Path) -> None:
    hub.gated.add(MODEL)
    assert "set HF_TOKEN" in refusal(pull(hub, home))


def test_a_repository_of_something_else_is_refused(hub: Hub, home: Path, model: Path) -> None:
    (model / "model_index.json").unlink()
    assert "no model_index.json" in refusal(pull(hub, home))


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_without_a_network_it_says_where_to_get_it(
    hub: Hub, home: Path, variables: dict[str, str], why: str
) -> None:
    line = refusal(pull(hub, home, **variables))
    assert why in line
    assert f"safelight pull {MODEL}" in line
    assert "local directory" in line


def test_a_broken_repository_is_refused(hub: Hub, home: Path, model: Path) -> None:
    (model / "vae" / "config.json").write_text("{")
    assert "vae/config.json is not a JSON object" in refusal(pull(hub, home))


def test_a_full_disk_is_one_line_and_nothing_half_is_left(hub: Hub, home: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails in the same place."""
    line = refusal(pull(hub, home, limit=200_000))
    assert f"There is no space left for {MODEL}" in line
    assert "HF_HOME" in line
    assert list(home.rglob("*.incomplete")) == []
    assert pull(hub, home).returncode == 0


def enlarge(model: Path) -> bytes:
    """Make the transformer's file one of many chunks; its content."""
    import numpy as np
    from safetensors.numpy import save_file

    numbers = np.arange(6 * 2**20, dtype=np.float32)
    save_file({"numbers": numbers}, model / LARGE)
    return (model / LARGE).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_file_is_continued(
    hub: Hub, home: Path, model: Path, number: signal.Signals
) -> None:
    content = enlarge(model)
    hub.stops_after = 2 * CHUNK + 1
    command: Any = [sys.executable, "-m", "safelight", "pull", MODEL]
    with subprocess.Popen(
        command, env=environment(hub, home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        assert hub.stopped.wait(60)
        part = blobs(home) / f"{etag(model / LARGE)}.safelight.incomplete"
        while not (part.exists() and part.stat().st_size == 2 * CHUNK):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(number)
        out, said = run.communicate()
    assert run.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert (out, said) == (b"", b"")
    hub.stops_after = None
    hub.requests.clear()
    done = pull(hub, home)
    assert done.returncode == 0, done.stderr
    assert hub.asked(LARGE) == [f"bytes={2 * CHUNK}-"]
    assert Path(done.stdout.strip(), LARGE).read_bytes() == content
    assert list(home.rglob("*.incomplete")) == []


def test_a_part_of_something_else_is_not_continued_into_rubbish(
    hub: Hub, home: Path, model: Path
) -> None:
    content = enlarge(model)
    blobs(home).mkdir(parents=True)
    (blobs(home) / f"{etag(model / LARGE)}.safelight.incomplete").write_bytes(
        b"not the beginning of it"
    )
    done = pull(hub, home)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip(), LARGE).read_bytes() == content
