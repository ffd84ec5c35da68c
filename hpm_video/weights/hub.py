"""Models on the Hugging Face Hub, given as ``hf://OWNER/NAME`` in place of a file.

No code from the hub is executed: downloads are read like any other weight file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

OF_HUB = "hf:/"  # Path collapses the two slashes
_NAME = re.compile(r"hf:/{1,2}([\w-][\w.-]*/[\w-][\w.-]*)(?:/([^@]+))?(?:@(\S+))?", re.ASCII)
# The first of these that a repository has; many hold the same weights in several formats
_WEIGHTS = (["*.safetensors"], ["*.bin"], ["*.pt", "*.pth"])


@cache
def local_model(place: str | Path) -> Path:
    """The local path of a model; ``hf://OWNER/NAME[/FILE][@REVISION]`` is downloaded if it is not
    in the cache of huggingface_hub.

    Raises ValueError, one line, if the name is invalid or the download fails.
    """
    name = str(place)
    if not name.startswith(OF_HUB):
        return Path(place)
    found = _NAME.fullmatch(name)
    if found is None or ".." in (found[2] or "").split("/"):
        raise ValueError(
            f"{name} must be hf://OWNER/NAME or hf://OWNER/NAME/FILE, optionally followed by "
            "@REVISION"
        )
    repo, file, revision = found.groups()
    hub = hub_library()
    with _told(f"hf://{repo}{f'@{revision}' if revision else ''}", repo, revision):
        for kind in [[file]] if file else _WEIGHTS:
            wanted = [*kind, "*.json"]
            folder = Path(hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
            if any(next(folder.glob(pattern), None) for pattern in kind):
                break
    path = folder / file if file else folder
    if not path.exists():
        raise ValueError(f"{name}: the repository has no file {file}")
    return path


@contextmanager
def _told(name: str, repo: str, revision: str | None) -> Iterator[None]:
    """Turn download errors into ValueErrors of one line that say what to do."""
    hub = hub_library()
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name} is gated; accept its terms at https://huggingface.co/{repo}, then run "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ValueError(
            f"{name} is not on {hub.constants.ENDPOINT}, or is private; check the name, or run "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:
        offline = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else first_line(error)
        words = f"hf download {repo}{f' --revision {revision}' if revision else ''}"
        raise ValueError(
            f"{name} is not in the cache ({hub.constants.HF_HUB_CACHE}) and cannot be downloaded "
            f"({offline}); run `{words}` on a machine with network access, then copy its cache "
            "here, or set HF_HUB_CACHE to the path of that cache"
        ) from error


def hub_library() -> Any:
    """Import huggingface_hub, an optional dependency; raises ValueError if it is missing."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(
            "the Hugging Face Hub needs the package huggingface_hub: pip install 'hpm_video[hub]'"
        ) from error
    return huggingface_hub


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
