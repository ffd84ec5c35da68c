"""Sweeps: every combination of a few values of some settings, a run each."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Combination:
    """One run of a sweep. name: of its folder. settings: ``group.key=value``."""

    name: str
    settings: tuple[str, ...]


def combinations(text: str) -> list[Combination]:
    """All runs of ``"a.b=1,2 c.d=x,y"``, the last key running fastest.

    A value in brackets keeps its commas. Raises ValueError when the text has another form, or a key
    or value comes twice.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"sweep ({text}) cannot be read: {error}") from error
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, rest = word.partition("=")
        values = _split(rest)
        if not equals or not all(key.split(".")) or not all(values):
            raise ValueError(f"sweep ({word}) must have the form group.key=value,value")
        if key in axes:
            raise ValueError(f"sweep ({text}) must name {key} once")
        if len(set(values)) < len(values):
            raise ValueError(f"sweep ({word}) must have each value once")
        axes[key] = values
    if not axes:
        raise ValueError("sweep () must name a setting: group.key=value,value")
    short = _short_names(list(axes))
    found: list[Combination] = []
    taken: set[str] = set()
    for choice in itertools.product(*axes.values()):
        pairs = list(zip(axes, choice, strict=True))
        name = ",".join(f"{short[key]}={_in_name(value)}" for key, value in pairs)
        while name in taken:  # values that differ in what names of folders cannot hold
            name += "_"
        taken.add(name)
        found.append(Combination(name, tuple(f"{key}={value}" for key, value in pairs)))
    return found


def _split(text: str) -> list[str]:
    """Values between commas that are in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _short_names(keys: list[str]) -> dict[str, str]:
    """The last part of each key, or the whole where two would be the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)
    }


def _in_name(value: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", value)[-60:]
