"""Uploads folders of exported models to the Hugging Face Hub; refuses any other files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpm_video.runtime.reading import read_json, read_text
from hpm_video.weights.export.model_card import NAME as CARD
from hpm_video.weights.export.model_card import TO_FILL_IN
from hpm_video.weights.hub import first_line, hub_library

_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
# Files that a model folder may hold: those that exports write, and usual additions
_OF_MODELS = re.compile(
    r"README\.md|LICENSE(\.\w+)?|\.gitattributes|config\.json|preprocessor_config\.json"
    r"|model[\w-]*\.safetensors|model\.safetensors\.index\.json"
    r"|[\w-]+\.(png|jpe?g|gif|webp|mp4)",
    re.ASCII,
)
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{30}|AKIA[A-Z0-9]{16}|sk-[\w-]{30}|PRIVATE KEY--"
)
_FEW = 5


@dataclass(frozen=True)
class Upload:
    """A planned upload. files: (name, bytes). missing: descriptions of what the folder lacks."""

    folder: Path
    files: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]


def plan_upload(folder: str | Path) -> Upload:
    """Inspect a folder of an exported model.

    Raises ValueError if it is none, or holds files that must not be uploaded: links, other kinds of
    files, or text that looks like a secret.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"FOLDER ({folder}) must be a folder written by `hpm-video weights export`"
        )
    way = "export a model with: hpm-video weights export RUN --to huggingface -o FOLDER"
    there = sorted(folder.iterdir())
    names = [path.name for path in there]
    if {"checkpoints", "metrics.jsonl"} & {*names}:
        raise ValueError(f"FOLDER ({folder}) is a run folder; {way}")
    others = [p.name for p in there if p.is_symlink() or not (_may_go(p.name) and p.is_file())]
    if others:
        more = f" and {len(others) - _FEW} more" if len(others) > _FEW else ""
        raise ValueError(
            f"FOLDER ({folder}) must hold nothing but an exported model; move elsewhere: "
            f"{', '.join(map(repr, others[:_FEW]))}{more}"
        )
    config = read_json(folder / "config.json") if "config.json" in names else None
    has_weights = any(name.endswith(".safetensors") for name in names)
    if not (isinstance(config, dict) and "model_type" in config and has_weights):
        raise ValueError(f"FOLDER ({folder}) holds no exported model; {way}")
    for path in there:
        if path.suffix in (".json", ".md", ".txt") and _SECRET.search(read_text(path)):
            raise ValueError(
                f"{path} contains text that looks like a token or a key; remove it first"
            )
    files = tuple((path.name, path.stat().st_size) for path in there)
    return Upload(folder, files, tuple(_missing(folder, names)))


def push(upload: Upload, repo: str, *, is_private: bool, message: str) -> str:
    """Upload as one commit, creating the repository if needed; returns its URL.

    Raises ValueError, one line, if the hub refuses or cannot be reached.
    """
    hub = hub_library()
    names = [name for name, _ in upload.files]
    try:
        made = hub.create_repo(repo, private=is_private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=upload.folder,
            allow_patterns=names,
            commit_message=message,
        )
    except (OSError, *hub.errors.HfHubHTTPError.__bases__) as error:
        raise ValueError(f"upload to REPO ({repo}) failed: {first_line(error)}") from error
    return str(made)


def check_repo(repo: str) -> None:
    """Raise ValueError unless ``repo`` is a valid repository name."""
    if not _REPO.fullmatch(repo):
        raise ValueError(f"REPO ({repo}) must be OWNER/NAME, made of letters, digits, - _ and .")


def has_token() -> bool:
    """Whether huggingface_hub has an access token."""
    return bool(hub_library().get_token())


def _missing(folder: Path, names: list[str]) -> Iterator[str]:
    if "preprocessor_config.json" not in names:
        yield "preprocessor_config.json, which says how to resize and normalise clips"
    if CARD not in names:
        yield f"{CARD}, the model card"
        return
    card = read_text(folder / CARD, errors="replace")
    header = card.split("---")[1] if card.startswith("---") else ""
    if not re.search(r"^license:[ \t]*[^\s#]", header, re.MULTILINE):
        yield f"a licence: `license: NAME` in the header of {CARD}"
    if (places := card.partition(header)[2].count(TO_FILL_IN)) > 0:
        yield f"text for {places} passages of {CARD} marked {TO_FILL_IN}"


def _may_go(name: str) -> bool:
    return _OF_MODELS.fullmatch(name) is not None
