"""A schema of nested dataclasses: its settings declared, described, and values checked against it.

What a value must be is said in plain words.
"""

import difflib
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Value = TypeVar("Value")
Path = tuple[Any, ...]  # names of groups and of a setting, one in the other

_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting(default: Value, meaning: str) -> Value:
    """A field of a schema: its default, and its meaning for --help."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Setting:
    """One setting. key: with its groups, dotted. default: as YAML. choices: if only some words."""

    key: str
    default: str
    meaning: str
    choices: tuple[str, ...]


def describe_settings(schema: type[Any], prefix: str = "") -> Iterator[Setting]:
    """All settings of a schema, in the order they are declared."""
    default, types = schema(), get_type_hints(schema)
    # Where a field declares no meaning, its ancestor's counts
    declared = [i for a in reversed(schema.__mro__) if is_dataclass(a) for i in fields(a)]
    meanings = {i.name: i.metadata["meaning"] for i in declared if "meaning" in i.metadata}
    for item in fields(schema):
        key, value = f"{prefix}{item.name}", getattr(default, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from describe_settings(type(value), f"{key}.")
            continue
        if (entry := entry_of(types[item.name])) is not None:
            yield from describe_settings(entry, f"{key}.NAME.")
            continue
        shown, kind = list(value) if isinstance(value, tuple) else value, types[item.name]
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        yield Setting(key, as_yaml(shown), meanings.get(item.name, ""), choices)


def settings_table(schema: type[Any], *, columns: int) -> str:
    """All settings with meaning, choices and default, in lines of at most so many characters."""
    settings = list(describe_settings(schema))
    key_width = max(len(setting.key) for setting in settings)
    indent = " " * (key_width + 4)
    lines: list[str] = []
    for setting in settings:
        choices = f"{' | '.join(setting.choices)}; " if setting.choices else ""
        lines += textwrap.wrap(
            f"{setting.meaning} ({choices}default {setting.default})",
            # Below a narrow terminal's width the lines are longer than it, but not unreadable.
            max(columns, len(indent) + 30),
            initial_indent=f"  {setting.key:<{key_width}}  ",
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


class SettingFaults(ValueError):  # noqa: N818 - what it holds
    """Faults of settings, all that were found; as text in one line.

    mended: the config that their proposed values make, for what is to be checked of it too; None
    where a fault has none.
    """

    def __init__(self, faults: Sequence[str], mended: Any = None) -> None:
        super().__init__("; ".join(faults))
        self.faults, self.mended = tuple(faults), mended


def check_settings(schema: type[Any], values: Mapping[Any, Any]) -> None:
    """Raise SettingFaults for unknown keys and values of the wrong type.

    ``values``: nested, as YAML gives them.
    """
    if found := [fault for _, fault in setting_faults(schema, values)]:
        raise SettingFaults(found)


def setting_faults(
    schema: type[Any],
    values: Mapping[Any, Any],
    *,
    before: Any = None,
    place: Path = (),
    root: type[Any] | None = None,
) -> Iterator[tuple[Path, str]]:
    """The names that lead to each fault, and what it is in one plain line, with a value that would
    do: a word like the one that was typed, or the one ``before``, by default the schema's.
    ``place`` and ``root``: where in which schema we are."""
    root, types, before = root or schema, get_type_hints(schema), before or schema()
    for name, value in values.items():
        here = (*place, name)
        key = ".".join(map(str, here))
        if name not in types:
            yield here, f"setting {key} is unknown{_suggestion(key, root)}"
        elif is_dataclass(types[name]):
            if isinstance(value, Mapping):
                there = getattr(before, name)
                yield from setting_faults(types[name], value, before=there, place=here, root=root)
            else:
                yield here, f"{key} ({as_yaml(value)}) must be a group: {key}.SETTING=value"
        elif (entry := entry_of(types[name])) is not None:
            groups = value.items() if isinstance(value, Mapping) else [("NAME", value)]
            for inner, settings in groups:
                if not isinstance(inner, str):
                    fault = f"{key} ({as_yaml(inner)}) must have texts as names: quotation marks "
                    fault += "around a number or a word of YAML make it one"
                    yield (*here, inner), fault
                elif not isinstance(settings, Mapping):
                    given = f"{key}.{inner} ({as_yaml(settings)})"
                    fault = f"{given} must be a group: {key}.{inner}.SETTING=value"
                    yield (*here, inner) if isinstance(value, Mapping) else here, fault
                else:
                    yield from setting_faults(entry, settings, place=(*here, inner), root=root)
        elif not _fits(schema, name, value):
            would_do = _nearest(types[name], value, default=getattr(before, name))
            fault = f"{key} ({as_yaml(value)}) must be {_in_words(types[name])}"
            yield here, f"{fault}: {shlex.quote(f'{key}={would_do}')} would do"


def _fits(schema: type[Any], name: str, value: Any) -> bool:
    """Whether a value is of a setting's type."""
    if isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value):
        return False  # no setting is a list of lists, which OmegaConf lets pass
    try:
        OmegaConf.update(_typed(cast(Any, schema)), name, value)
    except (OmegaConfBaseException, TypeError):
        return False
    return True


def _nearest(kind: Any, value: Any, *, default: Any) -> str:
    """A value of a type as one would type it: a word like the given one, or the default."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    close = difflib.get_close_matches(str(value), words, n=1)
    plain = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
    return close[0] if close else as_yaml(plain)


@cache
def _typed(schema: type[Any]) -> DictConfig:
    """A config that takes a value for a setting if it is of the right type, and says so if not."""
    typed: DictConfig = OmegaConf.structured(schema)
    OmegaConf.set_readonly(typed, False)
    return typed


def _suggestion(key: str, root: type[Any]) -> str:
    keys = [setting.key for setting in describe_settings(root)]
    groups = {known.rpartition(".")[0] for known in keys} - {""}
    close = difflib.get_close_matches(key, [*keys, *sorted(groups)], n=1)
    return f": did you mean {close[0]}?" if close else ""


def _in_words(kind: Any) -> str:
    """A type as what a value must be."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}"
    if NoneType in arguments:
        return f"{_in_words(arguments[0])}, or null"
    if arguments == (int, str):
        return "a whole number or a word"
    if get_origin(kind) is list:
        return "a list: [a, b], or one text" if str in arguments else "a list of numbers: [1, 2]"
    if get_origin(kind) is tuple:
        return f"a list of {len(arguments)} numbers: [{', '.join('ab'[: len(arguments)])}]"
    return _IN_WORDS[kind]


def entry_of(kind: Any) -> type[Any] | None:
    """The schema of each entry of a group with free names, dict[str, schema]; else None."""
    arguments = get_args(kind)
    if get_origin(kind) is dict and is_dataclass(arguments[1]):
        return cast(type[Any], arguments[1])
    return None


def as_yaml(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
