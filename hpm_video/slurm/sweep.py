"""Sweeps: every combination of a few values of some settings, a run each."""

import itertools
import re
import shlex

_NOT_IN_NAME = re.compile(r"[^\w.+-]+")  # of a folder


def combinations(text: str) -> dict[str, tuple[str, ...]]:
    """All runs of ``"a.b=1,2 c.d=x,y"``, the last key running fastest: the settings of each
    (``group.key=value``) by the name of its folder.

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
    last = {key: key.rpartition(".")[2] for key in axes}
    # The last part of each key, or the whole where two would be the same
    names = list(last.values())
    short = {key: name if names.count(name) == 1 else key for key, name in last.items()}
    runs: dict[str, tuple[str, ...]] = {}
    for choice in itertools.product(*axes.values()):
        pairs = list(zip(axes, choice, strict=True))
        name = ",".join(f"{short[k]}={_NOT_IN_NAME.sub('_', value)[-60:]}" for k, value in pairs)
        while name in runs:  # values that differ in what names of folders cannot hold
            name += "_"
        runs[name] = tuple(f"{key}={value}" for key, value in pairs)
    return runs


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
