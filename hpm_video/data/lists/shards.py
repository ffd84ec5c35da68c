"""Tars of videos (WebDataset shards) as lists.

Examples: ``train-0000.tar``, ``train-{0000..0123}.tar``, ``s3://bucket/train-{0000..0123}.tar``. A
row is a video named ``train-0000.tar/KEY.mp4``; its label is the content of ``KEY.cls``.
"""

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.places import expanded, is_shards, list_root
from hpm_video.data.remote.fetching import fetch_each
from hpm_video.data.remote.tars import cached_index
from hpm_video.data.remote.urls import is_url, system_of, without_query
from hpm_video.data.video.frames import NO_SUCH_FILE
from hpm_video.data.video.limits import READING
from hpm_video.data.video.part import IN_TAR
from hpm_video.data.video.tar_index import TarIndex, keep_index, kept_index
from hpm_video.data.video.tar_listing import CLASS, Listing, list_tar
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.workers import run_killable

_LABEL = re.compile(r"cls|txt|json\..+")
_MOST = 10**6  # tars per pattern
_MOST_WORKERS = 8  # processes that list tars
_MOST_S = 600.0  # per tar


def find_shards(path: str | Path) -> list[str]:
    """The tars that a path or pattern names, in order.

    Raises ValueError if the pattern is invalid, or FileNotFoundError if a tar is missing; for URLs,
    `read_shards` finds that out.
    """
    path = os.fspath(path)
    if os.path.exists(path):
        return [path]
    if path != without_query(path):
        raise ValueError(f"{path} must name tars without a query (the text after ?)")
    tars = list(itertools.islice(expanded(path), _MOST + 1))
    if len(tars) > _MOST:
        raise ValueError(f"{path} must name at most {_MOST:,} tars")
    _check_none_missing(
        path, tars, [tar for tar in tars if not (is_url(tar) or os.path.exists(tar))]
    )
    return tars


def _check_none_missing(path: str, tars: list[str], missing: list[str]) -> None:
    if missing:
        of = f" ({len(missing)} of the {len(tars)} tars of {path} are missing)"
        star = "; name several as in shard-{0000..0123}.tar" * ("*" in path)
        raise FileNotFoundError(f"{missing[0]} does not exist{of * (len(tars) > 1)}{star}")


def read_shards(
    path: str | Path, faults: Faults, label: str = CLASS
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("tar:number", row) for every video of the tars.

    Lists tars that have no index yet and writes an index for each. ``label``: source of the labels,
    see `list_tar`.

    Raises as `find_shards` does, or ValueError if an index cannot be written.
    """
    tars, root = find_shards(path), list_root(path, None)
    if is_url(path):
        if label != CLASS:
            raise ValueError(f"label ({label}) must be {CLASS} for tars at URLs ({path})")
        missing = _fetch_indices(tars, faults)
        _check_none_missing(str(path), tars, missing)
    else:
        index_tars(tars, faults)
    told = {} if label == CLASS else dict(_listed(tars, label, faults))
    for tar in tars:
        if (index := _index_of(tar)) is None:
            if not faults.has("shards"):  # a fault explains the missing index
                raise ValueError(
                    f"{tar} has changed, or its index was deleted; run the command again"
                )
            continue
        if label == CLASS:
            labels = index.labels()
        elif (listing := told.get(tar)) is not None:
            labels = listing.labels
        else:
            continue
        start = tar.removeprefix(f"{root}/") if is_url(path) else os.path.relpath(tar, root)
        for number, text in enumerate(labels):
            row = {"path": f"{start}/{index.name(number)}", "label": text}
            yield f"{tar}:{number + 1}", row


def shard_rows(path: str) -> Iterator[dict[str, str]]:
    """The rows of `read_shards`; faults raise at once, too."""
    faults = Faults()
    rows = (row for _, row in read_shards(path, faults))
    first = list(itertools.islice(rows, 1))
    faults.check()
    return itertools.chain(first, rows)


def index_tars(tars: Iterable[str], faults: Faults) -> None:
    """Write the index of every tar that has none; unusable tars are faults."""
    new = [tar for tar in tars if _index_of(tar) is None]
    _fetch_indices(list(filter(is_url, new)), faults)
    for tar, listing in _listed(list(itertools.filterfalse(is_url, new)), CLASS, faults):
        keep_index(tar, listing)


def _index_of(tar: str) -> TarIndex | None:
    """The stored index of a tar; for a URL the cached one, which may be outdated."""
    return cached_index(tar) if is_url(tar) else kept_index(tar)


def _fetch_indices(tars: list[str], faults: Faults) -> list[str]:
    """Fetch the indices of tars at URLs into the cache.

    Returns the missing tars; unusable ones are faults.
    """
    if not tars:
        return []
    missing = set()
    system_of(tars[0])
    with Progress("tars listed", total=len(tars)) as progress:
        for found in fetch_each(tars, lambda tar: f"{tar}/"):
            tar, reason = found.item, found.reason
            if found.held is not None:
                found.held.close()
            elif reason == NO_SUCH_FILE:
                missing.add(tar)
            else:
                faults.add("shards", tar, reason.removeprefix(f"{tar} "))
            progress.step(bad=found.held is None)
    return [tar for tar in tars if tar in missing]


def shard_note(path: str | Path) -> str | None:
    """What users may not know about the tars of a list."""
    if not is_shards(path):
        return None
    indices = (_index_of(tar) for tar in find_shards(path))
    without = sum(index.num_without for index in indices if index is not None)
    return f"{path}: {without} samples have no video (.mp4, .webm, ...)" if without else None


def tar_of(name: str) -> str | None:
    """The tar in the path of a possible member of one."""
    match = IN_TAR.search(name)
    return None if match is None else name[: match.end() - 1]


def _listed(tars: list[str], label: str, faults: Faults) -> Iterator[tuple[str, Listing]]:
    """The contents of each tar, as they become known; a tar that cannot be listed is a fault."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"label ({label}) must be cls, txt or json.FIELD, a field of KEY.json")
    workers = min(_MOST_WORKERS, os.cpu_count() or 1, len(tars))
    if not workers:
        return
    outcomes = run_killable(
        partial(list_tar, label=label), tars, num_workers=workers, timeout_s=_MOST_S,
        limits=READING,
    )  # fmt: skip
    with Progress("tars listed", total=len(tars)) as progress:
        for tar, outcome in outcomes:
            if is_good := isinstance(outcome, Listing):
                yield tar, outcome
            else:
                text = outcome if isinstance(outcome, str) else f"cannot be read: {outcome}"
                faults.add("shards", tar, text.removeprefix(f"{tar} "))
            progress.step(bad=not is_good)
