"""The doctor: each check sees a real fault."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.cli import checks, doctor
from safelight.cli.checks import Check
from safelight.cli.doctor import DoctorOptions
from safelight.config import EngineConfig, build


def config(**values: Any) -> EngineConfig:
    return build({"port": 0, **values})


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_this_machine_can_run_it(tmp_path: Path) -> None:
    found = {check.name: check for check in checks.run(config(data_dir=str(tmp_path)))}
    assert list(found) == [
        *("Python", "system", "cores", "memory", "shared memory", "torch", "CUDA", "diffusers"),
        *("transformers", "packages", "ffmpeg", "ipc", "port", "data directory", "disk", "model"),
        "layout",
    ]
    assert [check for check in found.values() if check.status == "fail"] == []
    for check in found.values():
        assert check.found
        assert bool(check.advice) == (check.status != "ok")


def test_a_used_port(used_port: int) -> None:
    check = checks.port(config(port=used_port))
    assert check.status == "fail"
    assert "Address already in use" in check.found
    assert "--port" in check.advice


def test_a_host_that_is_not_ours() -> None:
    assert checks.port(config(host="192.0.2.1")).status == "fail"


def test_a_data_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = checks.data_directory(config(data_dir=str(tmp_path / "file" / "data")))
    assert check.status == "fail"
    assert "--data-dir" in check.advice


def test_a_data_directory_that_may_not_be_written(tmp_path: Path) -> None:
    """`/proc` refuses everybody, root too."""
    assert checks.data_directory(config(data_dir="/proc/safelight")).status == "fail"


def test_a_data_directory_that_is_not_there_yet_is_left_so(tmp_path: Path) -> None:
    check = checks.data_directory(config(data_dir=str(tmp_path / "a" / "b")))
    assert check.status == "ok"
    assert "will be made" in check.found
    assert list(tmp_path.iterdir()) == []


def test_no_ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    assert checks.ffmpeg().status == "fail"


def test_an_ffmpeg_without_h264(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text("#!/bin/sh\necho only theora\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    check = checks.ffmpeg()
    assert check.status == "fail"
    assert "libx264" in check.found


def test_a_temporary_directory_too_deep_for_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    check = checks.ipc(config())
    assert check.status == "fail"
    assert "TMPDIR" in check.advice


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert checks.model(config(model_path=str(tmp_path))).status == "fail"


def test_a_model_without_weights(tmp_path: Path) -> None:
    from safelight.builtin import builtin_model

    for path in builtin_model("shapes").rglob("*.json"):
        copy = tmp_path / path.relative_to(builtin_model("shapes"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    check = checks.model(config(model_path=str(tmp_path)))
    assert (check.status, "safetensors is missing" in check.found) == ("fail", True)


@pytest.mark.parametrize(
    ("installed", "fits", "status"),
    [("0.42.1", True, "ok"), ("0.41.0", False, "fail"), (None, False, "fail")],
)
def test_packages_out_of_range(installed: str | None, fits: bool, status: str) -> None:
    check = checks.package("diffusers", installed, ">=0.42,<0.43", fits)
    assert check.status == status


def test_requirements_of_another_distribution_are_checked_too() -> None:
    assert {c.status for c in checks.packages("pytest")} == {"ok"}
    assert checks.installed_version("no-such-distribution") is None


def test_a_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the GPU whose absence is tested")
    assert checks.cuda(config(device="cuda")).status == "fail"
    assert checks.cuda(config(device="auto")).status != "fail"


def test_json_and_the_exit_status(
    used_port: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = config(port=used_port, data_dir=str(tmp_path))
    assert doctor.doctor(bad, DoctorOptions(json=True)) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    [port] = [check for check in said["checks"] if check["name"] == "port"]
    assert port["status"] == "fail"
    assert set(port) == {"name", "status", "found", "advice"}

    assert doctor.doctor(config(data_dir=str(tmp_path)), DoctorOptions(json=True)) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_the_table_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._table([Check(name="port", status="fail", found="[used]", advice="Do this.")])
    out = capsys.readouterr().out
    assert "fail  [used]" in out
    assert "→ Do this." in out


def test_the_layouts_that_fit_and_their_memory() -> None:
    layout, *others = checks.layouts(config(num_gpus=4, device="cpu"))
    assert (layout.name, layout.status) == ("layout", "ok")
    assert "--ulysses-degree 4 --ring-degree 1" in layout.found
    assert "MiB a rank (text_encoder" in layout.found
    fits = [check.found.partition(":")[0] for check in others]
    assert "--num-gpus 4 --ulysses-degree 2 --ring-degree 2 --tp-size 4" in fits
    assert "--num-gpus 4 --dp-size 4" in fits


def test_a_layout_that_does_not_fit_and_those_that_do() -> None:
    layout, *others = checks.layouts(config(num_gpus=8, ulysses_degree=8, device="cpu"))
    assert layout.status == "fail"
    assert "4 attention heads" in layout.found
    assert any("--ulysses-degree 4 --ring-degree 2" in check.found for check in others)


def test_degrees_that_contradict_each_other() -> None:
    (layout,) = checks.layouts(config(num_gpus=3, ulysses_degree=2))
    assert layout.status == "fail"
    assert "does not divide" in layout.found


def test_encoders_in_host_memory_are_not_shared_out() -> None:
    offloading = config(num_gpus=4, device="cpu", text_encoder_cpu_offload=True)
    assert not any("--tp-size" in check.found for check in checks.layouts(offloading))


def test_weights_that_are_only_a_pointer_are_named(tmp_path: Path) -> None:
    from safelight.builtin import builtin_model

    copy = shutil.copytree(builtin_model("shapes"), tmp_path / "model")
    [broken] = (copy / "vae").glob("*.safetensors")
    broken.write_text("version https://git-lfs.github.com/spec/v1\nsize 1\n")
    (check,) = checks.layouts(config(model_path=str(copy), num_gpus=2, device="cpu"))
    assert check.status == "fail"
    assert str(broken) in check.found
    assert "git lfs pull" in check.advice
