"""One file of a repository on the hub: from the local cache, or downloaded into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from safelight.errors import InvalidRequest, Unavailable

Choose = Callable[[Sequence[str]], str]
"""Which of these files; raises `InvalidRequest` if it is none of them."""


def fetch(repository: str, choose: Choose, *, param: str) -> Path:
    """The file of `repository` that `choose` names. What the cache has is not asked for again.

    Raises `InvalidRequest` if it cannot be had, `Unavailable` if the download fails.
    """
    if (found := _cached(repository, choose)) is not None:
        return found
    return _download(repository, choose, param)


def _cached(repository: str, choose: Choose) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(snapshot_download(repository, local_files_only=True))
        names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
        return directory / choose(names)
    except (LocalEntryNotFoundError, HFValidationError, InvalidRequest):
        return None  # the hub may have more of it


def _download(repository: str, choose: Choose, param: str) -> Path:
    import httpx2
    from huggingface_hub import HfApi, errors, hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    try:
        info = HfApi().model_info(repository)  # asks once, where the rest would insist
        name = choose([sibling.rfilename for sibling in info.siblings or ()])
        return Path(hf_hub_download(repository, name))
    except errors.GatedRepoError as failure:
        text = f"{repository} is gated: accept its terms on the hub, then start with HF_TOKEN set."
        raise InvalidRequest(text, param=param) from failure
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as failure:
        text = f"The hub has no repository {repository}, or it is private; nor is it a local path."
        raise InvalidRequest(text, param=param) from failure
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as failure:
        raise InvalidRequest(_unreachable(repository), param=param) from failure
    except errors.HfHubHTTPError as failure:
        status = failure.response.status_code
        raise Unavailable(f"The hub answers HTTP {status} for {repository}.") from failure
    except httpx2.HTTPError as failure:
        raise InvalidRequest(_unreachable(repository), param=param) from failure
    except OSError as failure:
        raise Unavailable(f"The download of {repository} failed: {failure}.") from failure


def _unreachable(repository: str) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    else:
        why = f"{os.environ.get('HF_ENDPOINT', 'the hub')} cannot be reached"
    return (
        f"{repository} is neither a local path nor in the cache of the hub, and {why}. Give the "
        "path of a .safetensors file."
    )
