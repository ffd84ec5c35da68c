"""Sweeps: one run for each combination of values of several settings."""

import itertools
import math
import re
import shlex

_NOT_IN_NAME = re.compile(r"[^\w.+-]+")  # replaced in folder names


def axes(text: str) -> dict[str, list[str]]:
    """Key -> values, parsed from ``"a.b=1,2 c.d=x,y"``; commas within brackets do not separate.

    Raises ValueError if the text has another form, or a key or value occurs twice.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"sweep ({text}) cannot be read: {error}") from error
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, rest = word.partition("=")
        values = _split(rest)
        if not equals or not all(key.split(".")) or not all(values):
            raise ValueError(f"sweep ({word}) must have the form group.key=value,value")
        if key in found:
            raise ValueError(f"sweep ({text}) must name {key} only once")
        if len(set(values)) < len(values):
            raise ValueError(f"sweep ({word}) must have each value only once")
        found[key] = values
    if not found:
        raise ValueError("sweep () must name a setting: group.key=value,value")
    return found


def check_size(text: str, most: int, limit: str) -> None:
    """Raise ValueError if a sweep has more than ``most`` runs. ``limit``: name of SLURM's limit."""
    sizes = {key: len(values) for key, values in axes(text).items()}
    total = math.prod(sizes.values())
    if total <= most:
        return
    key = max(sizes, key=sizes.__getitem__)
    each = most * sizes[key] // total  # values of that key that fit in one array
    how = (
        f"submit {-(-sizes[key] // each)} sweeps with at most {each:,} values"
        if each
        else ("submit several sweeps with fewer values")
    )
    raise ValueError(
        f"sweep ({total:,} runs) must be at most {most:,}, the largest array that this cluster "
        f"allows ({limit}): {how} of {key} each"
    )


def combinations(text: str) -> dict[str, tuple[str, ...]]:
    """Folder name -> settings (``group.key=value``) of each run of a sweep; the last key varies
    fastest.

    Raises ValueError like `axes`.
    """
    values = axes(text)
    last = {key: key.rpartition(".")[2] for key in values}
    # The last part of each key, or the whole key if that is ambiguous
    names = list(last.values())
    short = {key: name if names.count(name) == 1 else key for key, name in last.items()}
    runs: dict[str, tuple[str, ...]] = {}
    for choice in itertools.product(*values.values()):
        pairs = list(zip(values, choice, strict=True))
        name = ",".join(f"{short[k]}={_NOT_IN_NAME.sub('_', v)[-60:]}" for k, v in pairs)
        while name in runs:  # values that differ only in replaced characters
            name += "_"
        runs[name] = tuple(f"{key}={value}" for key, value in pairs)
    return runs


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
