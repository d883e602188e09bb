"""The checks of `safelight doctor`. Each tries the thing itself rather than asking about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
import zmq

from safelight import host
from safelight.config import EngineConfig
from safelight.errors import ConfigError, SafelightError
from safelight.parallel.layout import Capabilities, Layout, complete, fitting, refusals

GIB = 2**30
_LITTLE_MEMORY = 2 * GIB
_LITTLE_DISK = 5 * GIB
_NO_DISK = 100 * 2**20
_MIN_PYTHON = (3, 11)


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what was found and, unless all is well, what to do."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name=name, status="ok", found=found)


def warn(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status="warn", found=found, advice=advice)


def fail(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status="fail", found=found, advice=advice)


def run(config: EngineConfig) -> list[Check]:
    """Every check, in the order of the table."""
    return [*_machine(), *_libraries(config), *_surroundings(config)]


def _machine() -> Iterator[Check]:
    plain: tuple[Callable[[], Check], ...] = (python, system, cores, memory, shared_memory)
    return (check() for check in plain)


def _libraries(config: EngineConfig) -> Iterator[Check]:
    yield torch_build()
    yield cuda(config)
    yield from packages()
    yield ffmpeg()


def _surroundings(config: EngineConfig) -> Iterator[Check]:
    for check in (ipc, port, data_directory, disk):
        yield check(config)
    for entry in config.entries:
        one = config.of(entry.name)
        yield model(one)
        yield from layouts(_local(one))


# ---------------------------------------------------------------------------------------- machine


def python() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] < _MIN_PYTHON:
        return fail("Python", found, "Install Python 3.11 or later.")
    return ok("Python", f"{found} ({sys.executable})")


def system() -> Check:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform != "linux":
        return fail("system", found, "Safelight needs Linux (memfd, pidfd, PR_SET_PDEATHSIG).")
    return ok("system", found)


def cores() -> Check:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return warn("cores", "1", "HTTP, encoding and the model share it; give it two or more.")
    return ok("cores", str(count))


def memory() -> Check:
    available = host.available_memory()
    found = f"{available / GIB:.1f} GiB available"
    if available < _LITTLE_MEMORY:
        return warn("memory", found, "torch and diffusers alone take about 1 GiB: free some.")
    return ok("memory", found)


def shared_memory() -> Check:
    """Frames travel in memfds: is there one, and can it be opened through /proc?"""
    try:
        fd = os.memfd_create("safelight-doctor", os.MFD_CLOEXEC)
        with os.fdopen(fd, "wb") as file:
            file.write(bytes(2**20))
            file.flush()
            os.close(os.open(f"/proc/{os.getpid()}/fd/{fd}", os.O_RDONLY))
    except OSError as failure:
        advice = "Frames travel in memfds through /proc: allow memfd_create, mount /proc."
        return fail("shared memory", f"memfd: {failure.strerror}", advice)
    return ok("shared memory", "memfd through /proc")


# -------------------------------------------------------------------------------------- libraries


def torch_build() -> Check:
    try:
        import torch
    except (ImportError, OSError) as failure:
        return fail("torch", f"cannot be imported: {failure}", "pip install torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return ok("torch", f"{torch.__version__} ({build})")


def cuda(config: EngineConfig) -> Check:
    """The GPUs; missing ones matter only where they were asked for."""
    try:
        import torch
    except (ImportError, OSError):
        return fail("CUDA", "unknown without torch", "Mend torch first.")
    if torch.cuda.is_available():
        devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return ok("CUDA", "; ".join(f"{d.name}, {d.total_memory / GIB:.0f} GiB" for d in devices))
    if config.model.device == "cuda":
        return fail("CUDA", "no device", "Leave out --device cuda, or mend the driver.")
    if torch.version.cuda:
        advice = "nvidia-smi says whether the driver sees a GPU; the model runs on the CPU."
        return warn("CUDA", "no device, though torch is a CUDA build", advice)
    return ok("CUDA", "no device; the model runs on the CPU")


def packages(distribution: str = "safelight") -> Iterator[Check]:
    """diffusers and transformers by name, every other requirement together."""
    from packaging.requirements import Requirement

    wrong = []
    for requirement in map(Requirement, importlib.metadata.requires(distribution) or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = installed_version(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, True)
        if requirement.name in ("diffusers", "transformers"):
            yield package(requirement.name, installed, str(requirement.specifier), fits)
        elif not fits:
            wrong.append(f"{requirement} (found {installed})")
    if wrong:
        yield fail("packages", "; ".join(wrong), "pip install -c constraints.txt -e .")
    else:
        yield ok("packages", "all requirements are met")


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str, installed: str | None, wanted: str, fits: bool) -> Check:
    if fits and installed:
        return ok(name, f"{installed} ({wanted})")
    found = f"{installed}, {wanted} is supported" if installed else "not installed"
    return fail(name, found, f"pip install '{name}{wanted}'")


def ffmpeg() -> Check:
    """The binary that makes MP4s, and whether it can make H.264."""
    import imageio_ffmpeg

    advice = "pip install imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264."
    try:
        path = imageio_ffmpeg.get_ffmpeg_exe()
        said = subprocess.run(
            [path, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True
        ).stdout
    except RuntimeError as failure:
        return fail("ffmpeg", str(failure).splitlines()[0], advice)
    except (OSError, subprocess.CalledProcessError) as failure:
        return fail("ffmpeg", f"does not run: {failure}", advice)
    if "libx264" not in said:
        return fail("ffmpeg", f"{path} has no libx264", advice)
    return ok("ffmpeg", path)


# ----------------------------------------------------------------------------------- surroundings


def ipc(config: EngineConfig) -> Check:
    """A message over an `ipc://` socket in a temporary directory, as between the processes."""
    advice = "The temporary directory must allow Unix sockets and have a short path: set TMPDIR."
    with (
        zmq.Context() as context,
        tempfile.TemporaryDirectory(prefix="safelight-") as directory,
        context.socket(zmq.PAIR) as one,
        context.socket(zmq.PAIR) as other,
    ):
        for end in (one, other):
            end.setsockopt(zmq.LINGER, 0)
        try:
            one.bind(f"ipc://{directory}/doctor.sock")
            other.connect(f"ipc://{directory}/doctor.sock")
            other.send(b"ping")
        except zmq.ZMQError as failure:
            return fail("ipc", f"{directory}: {failure.strerror}", advice)
        if not one.poll(5000) or one.recv() != b"ping":
            return fail("ipc", f"{directory}: no message came through", advice)
    return ok("ipc", f"ZeroMQ {zmq.zmq_version()}")


def port(config: EngineConfig) -> Check:
    """Whether the server could listen where it is told to."""
    host, number = config.server.host, config.server.port
    where = f"{host}:{number}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as failure:
        advice = "Choose another with --port (0 takes a free one) or --host, or stop what is there."
        return fail("port", f"{where}: {failure.strerror}", advice)
    return ok("port", f"{where} is free")


def data_directory(config: EngineConfig) -> Check:
    """Whether files can be made there; makes nothing that stays."""
    path, existing = config.data_path, _existing(config.data_path)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as failure:
        advice = "Choose another directory with --data-dir, or change its owner."
        return fail("data directory", f"{path}: {failure.strerror}", advice)
    return ok("data directory", str(path) if existing == path else f"{path} (will be made)")


def disk(config: EngineConfig) -> Check:
    free = shutil.disk_usage(_existing(config.data_path)).free
    found = f"{free / GIB:.1f} GiB free"
    if free < _NO_DISK:
        return fail("disk", found, "Free some, or choose another --data-dir.")
    if free < _LITTLE_DISK:
        return warn("disk", found, "Finished files fill it: free some, or change --data-dir.")
    return ok("disk", found)


def _existing(path: Path) -> Path:
    """`path`, or the nearest of its parents that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def model(config: EngineConfig) -> Check:
    """Whether the configured model is there and whole, and has a family."""
    from safelight.models import sources
    from safelight.models.registry import load_card

    try:
        card = load_card(sources.prepare(config, downloading=None))
    except SafelightError as failure:
        advice = "Do as it says, or leave out --model-path for the built-in model."
        return fail("model", failure.message, advice)
    return ok("model", f"{card.name} ({card.family}) in {card.path}")


def _local(config: EngineConfig) -> EngineConfig:
    """With its model as it is on this machine, if it is; what is wrong with it, `model` says."""
    from safelight.models import sources

    try:
        return sources.prepare(config, downloading=None)
    except SafelightError:
        return config


def layouts(config: EngineConfig) -> Iterator[Check]:
    """The layout that was asked for, and all that fit so many devices, with the memory of each."""
    from safelight.models.registry import load_capabilities

    try:
        capabilities = load_capabilities(config)
        layout = complete(config.parallel)
    except ConfigError as failure:
        yield fail("layout", failure.message, "Change the degrees as it says.")
        return
    try:
        yield from _fitting(config, layout, capabilities)
    except SafelightError as failure:
        advice = "Fetch again what it names; a git-lfs pointer needs git lfs pull."
        yield fail("rank memory", failure.message, advice)


def _fitting(config: EngineConfig, layout: Layout, capabilities: Capabilities) -> Iterator[Check]:
    reasons = refusals(layout, capabilities)
    if reasons:
        yield fail("layout", ". ".join(reasons), "Choose one of the layouts below.")
    else:
        yield ok("layout", f"{layout.flags()}: {memory_of(config, layout, parts=True)}")
    if config.parallel.num_gpus is None and layout.num_gpus == 1:
        return
    # Encoders in host memory are not shared out: one excludes the other.
    tp = 1 if config.model.text_encoder_cpu_offload else 0
    found = fitting(layout.num_gpus, capabilities, tp=tp)
    for option in found:
        yield ok("fits", f"{option.flags()}: {memory_of(config, option)}")
    if not found:
        advice = "Another --num-gpus may fit better: doctor --num-gpus N says."
        yield warn("fits", f"no layout uses {layout.num_gpus} devices", advice)


def memory_of(config: EngineConfig, layout: Layout, *, parts: bool = False) -> str:
    """What each rank needs, for people."""
    from safelight.models.footprint import footprint

    need = footprint(config, layout, cuda=_on_cuda(config))
    total = f"{_size(need.total)} a rank"
    if not parts:
        return total
    weights = ", ".join(f"{name} {_size(count)}" for name, count in need.weights.items())
    return f"{total} ({weights}, activations about {_size(need.activations)})"


def _on_cuda(config: EngineConfig) -> bool:
    if config.model.device != "auto":
        return config.model.device == "cuda"
    import torch

    return torch.cuda.is_available()


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
