"""Models on the hub: found in the local cache, or downloaded into it, by huggingface_hub.

Needs no torch. What is fetched are the files of the pipeline's components, and of these only JSON,
text, tokenizers and safetensors: never a pickle, and never the single-file copies that many
repositories have beside the components.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.errors import ConfigError, Unavailable
from safelight.models import checkpoint

if TYPE_CHECKING:
    from huggingface_hub.hf_api import HfApi, RepoFile

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; from several threads."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".safetensors")
_TOP = ("model_index.json", "safelight.json")
_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_ETAG = re.compile(r"[0-9a-f]{40,64}")
_DOWNLOADS = 8
"""Files at once, as huggingface_hub has it."""


class Unreachable(ConfigError):
    """The model is not in the cache, and there is no way to the hub."""


def is_id(model_path: str) -> bool:
    """Whether this is how the hub names models: `organisation/name`."""
    return _ID.fullmatch(model_path) is not None and not model_path.startswith((".", "/"))


def cached(model: str, revision: str | None = None) -> Path | None:
    """The directory of a model that is in the local cache with all its files; asks nobody."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        index = try_to_load_from_cache(model, _TOP[0], revision=revision)
        if not isinstance(index, str):
            return None
        patterns = _patterns(checkpoint.read_json(Path(index)))
        commit = Path(index).parent.name
        directory = Path(
            snapshot_download(
                model, revision=commit, allow_patterns=patterns, local_files_only=True
            )
        )
        checkpoint.verify(directory, trust_remote_code=True)
    except (LocalEntryNotFoundError, HFValidationError, ConfigError):
        return None
    return directory


def fetch(model: str, revision: str | None = None, on_progress: Progress | None = None) -> Path:
    """Download what is missing of a model, and give its directory.

    A file that was interrupted is continued, unless the hub serves it by Xet, whose client has no
    such thing. Raises `ConfigError` if it cannot be had, `Unavailable` if the hub cannot be
    reached, each with what to do.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    try:
        with _explained(model, revision):
            HfApi().model_info(model, revision=revision)  # asks once, where the rest would insist
            return _snapshot(model, revision, on_progress)
    except Unreachable:
        if (found := cached(model, revision)) is not None:
            return found
        raise


def _snapshot(model: str, revision: str | None, on_progress: Progress | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    meter = _Meter(on_progress)
    index = Path(hf_hub_download(model, _TOP[0], revision=revision, tqdm_class=_bar(None)))
    patterns = _patterns(checkpoint.read_json(index))
    # Of the same commit, even if somebody pushes meanwhile.
    commit = index.parent.name
    _fetch_large(model, commit, patterns, meter)
    directory = snapshot_download(
        model, revision=commit, allow_patterns=patterns, tqdm_class=_bar(meter)
    )
    return Path(directory)


def _patterns(index: Mapping[str, Any]) -> list[str]:
    """What is needed of a repository with this `model_index.json`; code that a component may have
    is small, and read only with --trust-remote-code."""
    return [
        *_TOP,
        *(f"{name}/*{end}" for name, _, _ in checkpoint.components(index) for end in _SUFFIXES),
        *(f"{name}/{library}.py" for name, library, _ in checkpoint.components(index)),
    ]


# ------------------------------------------------------------------------------------- large files


def _fetch_large(model: str, commit: str, patterns: list[str], meter: _Meter) -> None:
    """Download the large files into the cache, each from where an earlier download ended.

    huggingface_hub would begin an interrupted file again, and forget what is left of it in the
    cache, which is gigabytes. What Xet serves is left to it.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=model, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / folder / "blobs"
    files = _files(HfApi(), model, commit, patterns)
    missing = [file for file in files if not (blobs / _etag(file)).exists()]
    meter.begin(sum(file.size for file in missing))
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        locks = cache / ".locks" / folder
        jobs = [
            pool.submit(_fetch_one, model, commit, file, blobs, locks, meter)
            for file in missing
            if file.lfs is not None and (file.xet_hash is None or constants.HF_HUB_DISABLE_XET)
        ]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _files(api: HfApi, model: str, commit: str, patterns: list[str]) -> list[RepoFile]:
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    tree = api.list_repo_tree(model, recursive=True, revision=commit)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return [files[path] for path in filter_repo_objects(files, allow_patterns=patterns)]


def _etag(file: RepoFile) -> str:
    """The name of a file's content in the cache: the hub says it, and a path it must not be."""
    etag = str(file.lfs.sha256 if file.lfs is not None else file.blob_id)
    if not _ETAG.fullmatch(etag):
        raise OSError(f"the hub names the content of {file.path} {etag!r:.80}")
    return etag


def _fetch_one(
    model: str, commit: str, file: RepoFile, blobs: Path, locks: Path, meter: _Meter
) -> None:
    """Download one file, or the rest of it, under the lock that huggingface_hub takes for it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    blob = blobs / _etag(file)
    blobs.mkdir(parents=True, exist_ok=True)
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{blob.name}.lock"):
        if blob.exists():
            return
        part = _partial(blob, file.size)
        continued = part.stat().st_size
        with _freed_if_full(part), part.open("ab") as output:
            http_get(
                hf_hub_url(model, file.path, revision=commit),
                output,
                resume_size=continued,
                headers=build_hf_headers(),
                expected_size=file.size,
                tqdm_class=_bar(meter),
            )
        if continued and _sha256(part) != blob.name:
            part.unlink()  # it was of something else; snapshot_download fetches it whole
        else:
            part.replace(blob)


@contextmanager
def _freed_if_full(part: Path) -> Iterator[None]:
    """A partial file is kept for the next time, but not where it would keep the disk full."""
    try:
        yield
    except OSError as failure:
        if failure.errno in NO_SPACE:
            part.unlink()
        raise


def _partial(blob: Path, size: int) -> Path:
    """The file to continue: the largest that is left of earlier downloads; the others go."""
    parts = sorted(
        blob.parent.glob(f"{blob.name}.*incomplete"), key=lambda path: path.stat().st_size
    )
    usable = [path for path in parts if path.stat().st_size < size]
    part = usable[-1] if usable else blob.with_name(f"{blob.name}.safelight.incomplete")
    for path in parts:
        if path != part:
            path.unlink()
    part.touch()
    return part


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Meter:
    """Adds up the bytes of all files."""

    def __init__(self, on_progress: Progress | None) -> None:
        self._on_progress = on_progress or (lambda done, total: None)
        self._lock = threading.Lock()
        self._done = self._total = 0

    def begin(self, total: int) -> None:
        self._total = total

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._on_progress(self._done, self._total)


def _bar(meter: _Meter | None) -> type:
    """A class as huggingface_hub wants for progress, that shows nothing and tells `meter`."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # One bar counts what comes over the network, one files, and one what is written.
            self._counts = kwargs.get("unit") == "B" and kwargs.get("desc") != "Downloading bytes"
            super().__init__(*args, **{**kwargs, "disable": True})
            self.update(kwargs.get("initial"))

        def update(self, n: float | None = 1) -> None:
            if meter is not None and self._counts and n:
                meter.add(int(n))

    return Bar


# -------------------------------------------------------------------------------------- what failed


@contextmanager
def _explained(model: str, revision: str | None) -> Iterator[None]:
    """What huggingface_hub raises, as one sentence for the user."""
    import httpx2
    from huggingface_hub import errors

    of = f"{model} at revision {revision}" if revision else model
    pull = f"safelight pull {model}" + (f" --revision {revision}" if revision else "")
    try:
        yield
    except errors.RevisionNotFoundError as failure:
        message = f"The hub has {model}, but no revision '{revision}' of it. Check --revision."
        raise ConfigError(message, param="revision") from failure
    except errors.GatedRepoError as failure:
        raise ConfigError(
            f"{model} is gated: accept its terms on its page on the hub, then set HF_TOKEN to a "
            "token of that account.",
            param="model_path",
        ) from failure
    except errors.RepositoryNotFoundError as failure:
        raise ConfigError(
            f"The hub has no model {model}, or it is private. Check the name; for a private one "
            "set HF_TOKEN. A local directory is not there either.",
            param="model_path",
        ) from failure
    except errors.LocalEntryNotFoundError as failure:
        raise _unreachable(of, pull) from failure
    except errors.EntryNotFoundError as failure:
        raise ConfigError(
            f"{of} on the hub is not a diffusers pipeline: it has no model_index.json. Look for "
            "the variant of it that is made for diffusers.",
            param="model_path",
        ) from failure
    except errors.HfHubHTTPError as failure:
        status = failure.response.status_code
        if status in (401, 403):
            message = f"The hub refuses {of} (HTTP {status}). Set HF_TOKEN to a token that may."
            raise ConfigError(message, param="model_path") from failure
        raise Unavailable(f"The hub answers HTTP {status} for {of}. Try again later.") from failure
    except errors.HFValidationError as failure:
        raise ConfigError(f"'{model}' is not a model's name: {failure}") from failure
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled) as failure:
        raise _unreachable(of, pull) from failure
    except OSError as failure:
        if failure.errno in NO_SPACE:
            raise _full(of) from failure
        raise Unavailable(f"The download of {of} failed: {failure}. Try again.") from failure


def _unreachable(of: str, pull: str) -> Unreachable:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"{os.environ.get('HF_ENDPOINT', 'the hub')} cannot be reached"
    return Unreachable(
        f"{of} is not, or not wholly, in the local cache, and {why}. Run '{pull}' where there is a "
        "network, or give --model-path a local directory.",
        param="model_path",
    )


def _full(of: str) -> ConfigError:
    from huggingface_hub import constants

    return ConfigError(
        f"There is no space left for {of} in {constants.HF_HUB_CACHE}. Free some, or set HF_HOME "
        "to a directory with more; what is complete is kept.",
        param="model_path",
    )
