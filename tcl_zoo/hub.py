"""The Hub's client, as this project uses it: fetch files of one commit, and say in one line why that was not possible.

Everything goes through ``huggingface_hub``: its cache, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean here
what they mean to its users. What is fetched is not trusted here; :mod:`tcl_zoo.weights` checks it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import WeightsError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 4.0  # seconds to the first answer, unless HF_HUB_ETAG_TIMEOUT says otherwise
_PAUSES = (0.5, 1.0)  # seconds between the tries of a server that is busy or out of order


def client() -> Any:
    """``huggingface_hub.HfApi``, introduced as this project."""
    from huggingface_hub import HfApi

    return HfApi(library_name="tcl_zoo", library_version=__version__)


def failures() -> tuple[type[Exception], ...]:
    """What the client raises where the Hub, the network or the disk refuses."""
    from huggingface_hub.errors import HTTPError  # of the HTTP library it speaks with; not all of them are OSErrors

    return HTTPError, OSError, ValueError, RuntimeError  # the last one from uploads and from xet's own transport


def cache_folder(repo_id: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where huggingface_hub keeps a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_dir or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type="model")


def fetch(
    repo_id: str,
    files: Sequence[str],
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force: bool = False,
    check: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Fetches files of one and the same commit.

    A commit that is in the cache is taken from there without a request; a branch or tag is looked up, and where the
    Hub does not answer the cached copy serves, as with huggingface_hub itself.

    Args:
        repo_id: ``org/name``.
        files: names at the top of the repository.
        revision: commit, tag or branch; ``main`` where not given.
        cache_dir: huggingface_hub's cache.
        force: fetch again what is in the cache.
        check: called with the folder when the first file is there; what it raises keeps the others from being fetched.

    Returns:
        The folder in the cache that has them.

    Raises:
        WeightsError: they cannot be had; the message says what was tried.
    """
    from huggingface_hub import hf_hub_download

    revision = revision or "main"
    if ".." in revision.split("/") or not re.fullmatch(r"[\w.][\w.+/-]{0,200}", revision):
        raise WeightsError(f"{revision[:80]!r} is no revision: pass a commit, a tag or a branch")

    def get(revision: str, file: str) -> Path:
        how = {"cache_dir": cache_dir, "library_name": "tcl_zoo", "library_version": __version__}
        return Path(hf_hub_download(repo_id, file, revision=revision, force_download=force, **how))

    try:
        cached = None if force else _cached(repo_id, files, revision, cache_dir)
        if cached and _COMMIT.fullmatch(revision):
            return cached
        if silence := _ask(repo_id, revision):
            if cached:
                return cached
            raise silence
        first = get(revision, files[0])
        check(first.parent)
        for file in files[1:]:  # of the commit that the first one is of, should a branch move meanwhile
            get(first.parent.name, file)
        return first.parent
    except WeightsError:
        raise
    except failures() as error:
        tail = f"; no copy in {cache_folder(repo_id, cache_dir)}" if _silent(error) and not force else ""
        raise WeightsError(f"cannot fetch hf-hub:{repo_id}@{revision}: {explain(error)}{tail}") from error


def _cached(repo_id: str, files: Sequence[str], revision: str, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder in the cache that has all of them at a revision, looked up without any request."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo_id, file, cache_dir=cache_dir, revision=revision) for file in files]
    return Path(found[0]).parent if all(isinstance(path, str) for path in found) else None


def _ask(repo_id: str, revision: str) -> Exception | None:
    """None where the Hub has the revision, else why it does not answer; the client alone would try for 23 seconds.

    Raises:
        HfHubHTTPError: it answers, and refuses.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    started = time.monotonic()
    build_hf_headers()  # once per process it asks the Hub who is calling, for up to 3 seconds: part of our time
    timeout = max(_TIMEOUT - (time.monotonic() - started), 1.0)
    if "HF_HUB_ETAG_TIMEOUT" in os.environ:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
    for pause in (*_PAUSES, None):
        try:
            client().model_info(repo_id, revision=revision, timeout=timeout)
            return None
        except failures() as error:
            if not _silent(error):
                raise
            if pause is None or not _status(error):
                return error
            time.sleep(pause)
    return None


def _status(error: Exception) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0)


def _silent(error: Exception) -> bool:
    """Whether an error says that the Hub was not reached or is out of order, rather than that it refused."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if _status(error):
        return _status(error) >= 500 or _status(error) in (408, 429)
    return isinstance(error, (HTTPError, OfflineModeIsEnabled, ConnectionError, TimeoutError))


def explain(error: Exception) -> str:
    """Why the Hub, the network or the disk refused, in one line that says what to do next."""
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, RuntimeError) and isinstance(error.__cause__, failures()):
        error = error.__cause__  # "Error while uploading ..."
    hub, status = constants.ENDPOINT, _status(error)
    sent = "the token that was sent" if get_token() else "no token was sent, so it"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return f"its terms have to be accepted first, on its page at {hub}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{hub} has no such repository, or {sent} may not see it (`hf auth login`, or set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"the repository has no {str(error.response.url).rpartition('/')[2]} at this revision"
    if status == 401 and not get_token():
        return f"{hub} asks for a token, and there is none (`hf auth login`, or set HF_TOKEN)"
    if status == 401:
        return f"{hub} does not accept the token (`hf auth login`, or set another HF_TOKEN)"
    if status == 403:
        return f"{hub} forbids it: {sent} lacks the permission"
    if status == 412:
        return "somebody else committed in the meantime; run it again"
    if status == 429:
        return f"{hub} asks for fewer requests (429); wait a few minutes, or log in (`hf auth login`)"
    if status:
        return f"{hub} answered {status}"
    if _silent(error):
        return f"{hub} does not answer ({_line(error)})"
    if isinstance(error, OSError) and error.errno:
        return f"{error.strerror}: {error.filename or 'free some space, or choose another cache_dir or HF_HOME'}"
    return _line(error)


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
