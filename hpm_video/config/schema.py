"""Schemas of nested dataclasses: declare and describe settings, and check values against them.

Messages state the expected type in plain words.
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
Path = tuple[Any, ...]  # names of the groups and the setting, outermost first

_MOST_ALIKE = 3  # settings of one name that a message offers
# Commands that read files of settings; the package that has the schemas fills it
SCHEMAS: dict[str, type[Any]] = {}
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def setting(default: Value, meaning: str) -> Value:
    """Declare a field of a schema, with its default and its meaning for --help."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Setting:
    """A setting. key: dotted, with groups. default: as YAML. choices: allowed words, if limited."""

    key: str
    default: str
    meaning: str
    choices: tuple[str, ...]


def describe_settings(schema: type[Any], prefix: str = "") -> Iterator[Setting]:
    """All settings of a schema, in order of declaration."""
    default, types = schema(), get_type_hints(schema)
    # A field without a meaning inherits it
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


def settings_called(name: str, schema: type[Any]) -> list[Setting]:
    """Settings in the fewest groups whose own name is or, if there are none, ends with a name."""
    known = [one for one in describe_settings(schema) if ".NAME." not in one.key]
    parts = [one.key.rpartition(".")[2] for one in known]
    same = [one for one, part in zip(known, parts, strict=True) if part == name] or [
        one for one, part in zip(known, parts, strict=True) if part.endswith(f"_{name}")
    ]
    fewest = min((one.key.count(".") for one in same), default=0)
    return [one for one in same if one.key.count(".") == fewest][:_MOST_ALIKE]


def settings_table(schema: type[Any], *, columns: int) -> str:
    """All settings with meaning, choices and default, wrapped to ``columns`` characters."""
    settings = list(describe_settings(schema))
    key_width = max(len(setting.key) for setting in settings)
    indent = " " * (key_width + 4)
    lines: list[str] = []
    for setting in settings:
        choices = f"{' | '.join(setting.choices)}; " if setting.choices else ""
        lines += textwrap.wrap(
            f"{setting.meaning} ({choices}default {setting.default})",
            # On very narrow terminals lines exceed the width, but stay readable.
            max(columns, len(indent) + 30),
            initial_indent=f"  {setting.key:<{key_width}}  ",
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


class SettingFaults(ValueError):  # noqa: N818 - what it holds
    """All faults found in settings; its text joins them on one line.

    mended: the config with the proposed values, for further checks; None if a fault has no
    proposal.
    """

    def __init__(self, faults: Sequence[str], mended: Any = None) -> None:
        super().__init__("; ".join(faults))
        self.faults, self.mended = tuple(faults), mended


def check_settings(schema: type[Any], values: Mapping[Any, Any]) -> None:
    """Raise SettingFaults for unknown keys and values of the wrong type.

    ``values``: nested, as read from YAML.
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
    """Yield each fault: the names that lead to the setting, and a message with a valid value.

    The proposed value is a choice similar to the typed word, else that of ``before`` (default: the
    schema's default). ``place`` and ``root``: current position, and the outermost schema.
    """
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
                rule = f"must be a group of settings: write {key}.SETTING=value"
                yield here, f"{key} ({as_yaml(value)}) {rule}"
        elif (entry := entry_of(types[name])) is not None:
            groups = value.items() if isinstance(value, Mapping) else [("NAME", value)]
            for inner, settings in groups:
                if not isinstance(inner, str):
                    rule = "must be a name, not a number or YAML keyword: put it in quotes"
                    yield (*here, inner), f"{key} ({as_yaml(inner)}) {rule}"
                elif not isinstance(settings, Mapping):
                    given = f"{key}.{inner} ({as_yaml(settings)})"
                    rule = f"must be a group of settings: write {key}.{inner}.SETTING=value"
                    fault = f"{given} {rule}"
                    yield (*here, inner) if isinstance(value, Mapping) else here, fault
                else:
                    yield from setting_faults(entry, settings, place=(*here, inner), root=root)
        elif not _fits(schema, name, value):
            would_do = _nearest(types[name], value, default=getattr(before, name))
            fault = f"{key} ({as_yaml(value)}) must be {_in_words(types[name])}"
            yield here, f"{fault}; try {shlex.quote(f'{key}={would_do}')}"


def _fits(schema: type[Any], name: str, value: Any) -> bool:
    """True if a value fits a setting's type."""
    if isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value):
        return False  # OmegaConf accepts lists of lists, but no setting is one
    try:
        OmegaConf.update(_typed(cast(Any, schema)), name, value)
    except (OmegaConfBaseException, TypeError):
        return False
    return True


def _nearest(kind: Any, value: Any, *, default: Any) -> str:
    """A valid value as typed: the choice closest to the given word, or the default."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    close = difflib.get_close_matches(str(value), words, n=1)
    plain = OmegaConf.to_container(default) if OmegaConf.is_config(default) else default
    return close[0] if close else as_yaml(plain)


@cache
def _typed(schema: type[Any]) -> DictConfig:
    """A config that checks types when a value is assigned."""
    typed: DictConfig = OmegaConf.structured(schema)
    OmegaConf.set_readonly(typed, False)
    return typed


def is_unknown(fault: str) -> bool:
    """Whether a fault of `setting_faults` is a name that the schema does not have."""
    return " is unknown" in fault


def _suggestion(key: str, root: type[Any]) -> str:
    keys = [setting.key for setting in describe_settings(root)]
    groups = {known.rpartition(".")[0] for known in keys} - {""}
    if same := settings_called(key, root):
        return f": did you mean {' or '.join(one.key for one in same)}?"
    if commands := [
        f"hpm-video {command}"
        for command, schema in SCHEMAS.items()
        if any(f"{one.key}.".startswith(f"{key}.") for one in describe_settings(schema))
    ]:
        return f": it belongs to {' and '.join(commands)}; leave it out"
    close = difflib.get_close_matches(key, [*keys, *sorted(groups)], n=1)
    return f": did you mean {close[0]}?" if close else ""


def _in_words(kind: Any) -> str:
    """The values of a type, in words, for messages."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(arguments)}"
    if NoneType in arguments:
        return f"{_in_words(arguments[0])}, or null"
    if arguments == (int, str):
        return "a whole number or a word"
    if get_origin(kind) is list:
        return (
            "a list: [a, b], or a single text" if str in arguments else "a list of numbers: [1, 2]"
        )
    if get_origin(kind) is tuple:
        return f"a list of {len(arguments)} numbers: [{', '.join('ab'[: len(arguments)])}]"
    return _IN_WORDS[kind]


def entry_of(kind: Any) -> type[Any] | None:
    """Schema of the entries of a group with free names, dict[str, schema]; else None."""
    arguments = get_args(kind)
    if get_origin(kind) is dict and is_dataclass(arguments[1]):
        return cast(type[Any], arguments[1])
    return None


def as_yaml(value: Any) -> str:
    """A value as a user would type it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
