"""Load settings of any dataclass schema from defaults, a YAML and words of a command line.

The only module that reads YAML.
"""

import difflib
import io
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpm_video.config.mending import mended
from hpm_video.config.schema import (
    SettingFaults,
    check_settings,
    entry_of,
    is_unknown,
    setting_faults,
)
from hpm_video.runtime.reading import read_text

Config = TypeVar("Config")

# libyaml's parser is ten times as fast, if available. Some YAML that it rejects is valid for the
# other parser.
_PARSERS = (getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader)
_DIGITS = re.compile(r"[-+.:_0-9a-fA-FxXoO]+")  # numbers in any YAML notation

# Groups for other commands (where and how to run a job), which are not the job's own settings.
_NOT_OF_JOBS = ("slurm",)
_MOST_BYTES = 1 << 22  # of a YAML; our largest has some thousands
_MOST_DEPTH = 20  # of nested groups; ours have 4
_MOST_VALUES = 100_000
_MOST_DIGITS = 300  # of a number; more make no difference to a float
_MARK = "$\ue000{"  # replaces "${", which OmegaConf would interpolate
_NULLS = ("", "~", "null", "Null", "NULL")


def load_config(
    schema: type[Config],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    known: Mapping[str, Any] | None = None,
    check: Callable[[Config], None] = lambda _: None,
) -> Config:
    """Load a config: defaults of ``schema`` < ``known`` < the YAML at ``path`` < ``overrides``.

    ``known``: nested settings that replace defaults. ``overrides``: words ``group.key=value``.
    ``path`` may name a variant of a list, see `find_config`. ``check``: raises ValueError for
    values that the schema does not refuse.

    Raises SettingFaults with all unknown keys (with suggestions) and wrong types or values;
    ValueError for an unreadable file or word; FileNotFoundError if the YAML or the variant is
    missing.
    """
    layers: list[Any] = [OmegaConf.structured(schema)]
    faults: list[str] = []

    def add(layer: Any, where: str = "") -> None:
        """Add the valid part of a layer, and report the rest as faults."""
        values = _as_meant(schema, OmegaConf.to_container(layer, resolve=False))
        found = list(setting_faults(schema, values))
        if found:  # repeat, to propose values set so far
            found = list(setting_faults(schema, values, before=OmegaConf.merge(*layers)))
        for place, fault in found:
            faults.append(where + fault)
            _remove(values, place)
        layers.append(OmegaConf.create(values))

    if known is not None:
        add(OmegaConf.create(dict(known)))
    if path is not None:
        layer, words = _read(path, _load)
        overrides = [*words_of(words), *overrides]
        if not isinstance(layer, DictConfig):
            raise ValueError(f"config ({path}) must hold groups of settings, key: value")
        for group in _NOT_OF_JOBS:
            layer.pop(group, None)
        add(layer, f"config ({path}): ")
    _check_patterns(overrides)
    for override in overrides:
        key, _, value = override.partition("=")
        if "=" not in override or not all(key.split(".")):
            raise ValueError(f"setting ({override}) must have the form group.key=value")
        layer = _verbatim(schema, key, value)
        try:
            if layer is None:
                check_yaml(value)
                layer = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            given = override if len(override) <= 160 else f"{override[:157]}..."
            raise ValueError(f"setting ({given}) cannot be read: {_one_line(error)}") from error
        add(layer)
    try:
        config = mended(layers, faults, check)
    except OmegaConfBaseException as error:
        raise ValueError(f"settings cannot be resolved: {_one_line(error)}") from error
    if faults or config is None:
        raise SettingFaults(faults, config)
    return config


@dataclass(frozen=True)
class _Variant:
    """An entry of a variant list: what it changes, and the published result it represents."""

    varies: str = ""
    stands_for: str = ""
    published: str = ""
    settings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Variants:
    variants: dict[str, _Variant] = field(default_factory=dict)


def find_config(path: str | Path) -> tuple[Path, str]:
    """File of a config, and the variant to take from it ("" for a plain file).

    ``LIST.yaml:NAME`` is a variant of a list, a YAML with the groups ``base`` and ``variants``. If
    ``FOLDER/NAME.yaml`` does not exist, it is the variant NAME of FOLDER/variants.yaml. Raises
    FileNotFoundError.
    """
    file = Path(path)
    if file.is_file():
        return file, ""
    if file.is_dir():
        raise FileNotFoundError(f"config ({path}) must be a file, not a folder")
    place, _, name = str(path).rpartition(":")
    if Path(place).is_file():
        return Path(place), name
    listing = file.with_name("variants.yaml")
    if file.suffix == ".yaml" and listing.is_file():
        return listing, file.stem
    raise FileNotFoundError(f"config ({path}) does not exist")


def unknown_settings(schema: type[Any], path: str | Path) -> list[str]:
    """Keys of settings and groups in a YAML that a schema does not have.

    Raises like `load_config`, except for the settings.
    """
    layer, _ = _read(path, _load)
    if not isinstance(layer, DictConfig):
        return []
    for group in _NOT_OF_JOBS:
        layer.pop(group, None)
    found = setting_faults(schema, _as_meant(schema, OmegaConf.to_container(layer, resolve=False)))
    return [".".join(map(str, place)) for place, fault in found if is_unknown(fault)]


def variant_settings(path: str | Path) -> list[str]:
    """Settings ``group.key=value`` that a variant, ``LIST.yaml:NAME``, adds to its list's base.

    Raises like `load_config`.
    """
    _, settings = _read(path, _load)
    if not find_config(path)[1]:
        raise ValueError(f"config ({path}) must name a variant in a list, such as LIST.yaml:NAME")
    return settings


def _check_patterns(overrides: Sequence[str]) -> None:
    """Raise ValueError if a shell has expanded a brace pattern into several settings, of which only
    the last would count."""
    for one, other in pairwise(override.partition("=") for override in overrides):
        are_tars = one[2].endswith(".tar") and other[2].endswith(".tar")
        if one[0] == other[0] and one != other and are_tars:
            raise ValueError(
                f"{one[0]} ({one[2]}, {other[2]}) must be given once: quote a pattern, so that the "
                f"shell does not expand it: '{one[0]}=shard-{{0000..0123}}.tar'"
            )


def words_of(settings: Sequence[str], *, name: str = "settings") -> list[str]:
    """Split texts of one or more settings into ``group.key=value`` words, like a shell."""
    words = []
    for text in settings:
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise ValueError(f"{name} ({text}) must close its quotation marks") from error
    return words


def _load(text: str) -> Any:
    return OmegaConf.load(io.StringIO(text))


def _read(path: str | Path, load: Callable[[str], Any]) -> tuple[Any, list[str]]:
    """Contents of a YAML; for a variant, the base of its list and the settings it adds."""
    file, name = find_config(path)
    try:
        layer = load(read_yaml(file))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "look at its indentation, colons, quotes and brackets, and at those before it"
        line = f", line {mark.line + 1}: {where}" if mark else ""
        raise ValueError(
            f"config ({path}) cannot be read as YAML: {_one_line(error)}{line}"
        ) from error
    if not isinstance(layer, Mapping) or set(layer) != {"base", "variants"}:
        if not name:
            return layer, []
        raise ValueError(f"config ({path}): {file} must hold the groups base and variants")
    try:
        variants = _checked(_Variants, OmegaConf.create({"variants": layer["variants"]})).variants
    except ValueError as error:
        raise ValueError(f"config ({path}): {error}") from error
    if name not in variants:
        close = difflib.get_close_matches(name, variants, n=1)
        hint = f"did you mean {file}:{close[0]}? " if close else f"name one as {file}:NAME. "
        raise FileNotFoundError(
            f"config ({path}) is not a variant of {file}: {hint}Variants: {', '.join(variants)}"
        )
    return layer["base"], list(variants[name].get("settings") or [])


def read_yaml(path: Path) -> str:
    """Read a YAML after checking that parsing it takes little memory.

    Raises OSError; ValueError if it is not a regular UTF-8 file, or fails `check_yaml`.
    """
    text = read_text(path, most=_MOST_BYTES)
    check_yaml(text)
    return text


def check_yaml(text: str) -> None:
    """Raise ValueError for YAML that is nested too deeply, or has too many values or digits.

    The values behind an alias count each time it is used. Other faults are left to the parser.
    """
    for parser in _PARSERS:
        with suppress(yaml.YAMLError):
            _check_events(yaml.parse(text, Loader=parser))
            return


def _check_events(events: Iterable[Any]) -> None:
    sizes: dict[str, int] = {}  # number of values behind each anchor
    open_: list[tuple[str | None, int]] = [(None, 0)]  # anchor and size of the enclosing groups
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > _MOST_DEPTH + 1:
                raise ValueError(f"must be nested at most {_MOST_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            is_long = len(event.value) > _MOST_DIGITS
            if is_long and event.implicit[0] and _DIGITS.fullmatch(event.value):
                raise ValueError(
                    f"has a number with {len(event.value)} digits: at most {_MOST_DIGITS}"
                )
        elif isinstance(event, yaml.AliasEvent):
            if any(event.anchor == outer for outer, _ in open_):
                raise ValueError(f"has an alias ({event.anchor}) that contains itself")
            anchor, size = None, sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        outer, before = open_[-1]
        open_[-1] = outer, before + size
        if before + size > _MOST_VALUES:
            raise ValueError(f"must have at most {_MOST_VALUES} values")


def check_plain(values: Any, *, name: str) -> dict[str, Any]:
    """Validate stored settings: nested dicts with text keys, lists, texts and numbers.

    Returns a plain copy. Raises ValueError, which calls them ``name``.
    """
    left = _MOST_VALUES

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _MOST_DEPTH or left < 0:
            most = f"{_MOST_DEPTH} levels deep, with at most {_MOST_VALUES} values"
            raise ValueError(f"{name} must be nested at most {most}")
        if isinstance(value, Mapping):
            if not all(type(key) is str for key in value):
                raise ValueError(f"{name} must have only text as names")
            return {key: copied(entry, depth + 1) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [copied(entry, depth + 1) for entry in value]
        if type(value) is int and abs(value) >= 1 << 63:
            raise ValueError(f"{name} must have only whole numbers that fit into 64 bits")
        if value is None or type(value) in (str, int, float, bool):
            return value
        raise ValueError(f"{name} must have text and numbers as values, not {type(value).__name__}")

    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be groups of settings, not a {type(values).__name__}")
    plain: dict[str, Any] = copied(values, 0)
    return plain


def read_group(path: str | Path, group: str) -> Any:
    """Read one group of a YAML that is not part of the job's settings, with all scalars as text.

    Empty values and null are None; a missing group is empty. Raises like `load_config`.
    """
    layer, _ = _read(path, lambda text: yaml.load(text, yaml.BaseLoader))
    group_of = layer.get(group) if isinstance(layer, dict) else None
    if isinstance(group_of, dict):
        return {key: None if value in _NULLS else value for key, value in group_of.items()}
    return group_of or {}


def config_from_dict(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Restore a config from the dict of `config_to_dict`, e.g. from a checkpoint.

    Values are data: ``${...}`` in a text is not interpolated. Raises ValueError if they do not fit
    the schema.
    """
    values = check_plain(values, name="stored settings")
    # Hide interpolations from the type checks, which accept any interpolation
    plain = _as_meant(schema, _with_texts(values, lambda text: text.replace("${", "$")))
    check_settings(schema, plain)
    # Exact for any text: only backslashes before ${ are special
    meant = _as_meant(schema, without_interpolations(values))
    try:
        return _merged([OmegaConf.structured(schema), OmegaConf.create(meant)])
    except OmegaConfBaseException as error:
        raise ValueError(f"stored settings cannot be used: {_one_line(error)}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of numbers, strings and lists."""
    return yaml.safe_load(config_to_yaml(config))


def config_to_yaml(config: Any) -> str:
    """YAML of all settings, resolved, in order of declaration."""
    values = _with_texts(asdict(config), lambda text: text.replace("${", _MARK))
    return OmegaConf.to_yaml(OmegaConf.create(values)).replace(_MARK, "${")


def read_stored(path: Path) -> dict[str, Any]:
    """Read nested settings from a file that `config_to_yaml` wrote.

    Raises ValueError for other contents, OSError if it cannot be read.
    """
    try:
        return check_plain(yaml.safe_load(read_yaml(path)), name=str(path))
    except (yaml.YAMLError, ValueError) as error:
        why = f"{path} does not hold the settings of a run or a study: {_one_line(error)}"
        raise ValueError(why) from error


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys with different values in two config dicts."""
    keys: list[str] = []
    for key in {**one, **other}:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            keys += differing_keys(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs:
            keys.append(f"{prefix}{key}")
    return keys


def _with_texts(values: Any, change: Callable[[str], str]) -> Any:
    """Nested values with ``change`` applied to all texts except names."""
    if isinstance(values, Mapping):
        return {name: _with_texts(entry, change) for name, entry in values.items()}
    if isinstance(values, list | tuple):
        return [_with_texts(entry, change) for entry in values]
    return change(values) if isinstance(values, str) else values


def without_interpolations(values: Any) -> Any:
    """Values, nested or not, with ``${`` in texts escaped for a YAML of settings."""
    return _with_texts(values, _escaped)


def _escaped(text: str) -> str:
    """Text that OmegaConf resolves to the given text."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _merged(layers: Sequence[Any]) -> Any:
    """Merge layers of settings, the schema first, into a config; later ones override."""
    return OmegaConf.to_object(OmegaConf.merge(*layers))


def _remove(values: Any, place: Sequence[Any]) -> None:
    for name in place[:-1]:
        values = values[name]
    del values[place[-1]]


def _checked(schema: type[Any], layer: Any) -> Any:
    """A layer that fits the schema; raises ValueError otherwise."""
    values = _as_meant(schema, OmegaConf.to_container(layer, resolve=False))
    check_settings(schema, values)
    return OmegaConf.create(values)


def _as_meant(schema: Any, values: Any) -> Any:
    """The values with YAML's ambiguities resolved.

    A single text becomes a list if the setting is a list of texts; true and false become words if
    the setting has words as choices.
    """
    if schema == list[str] and isinstance(values, str):
        return [values] if values else []
    if isinstance(values, bool) and get_origin(schema) is Literal:
        return str(values).lower()
    if not isinstance(values, Mapping):
        return values
    if (entry := entry_of(schema)) is not None:
        groups = {name: {} if group is None else group for name, group in values.items()}
        return {name: _as_meant(entry, group) for name, group in groups.items()}
    types = get_type_hints(schema) if is_dataclass(schema) else {}
    return {name: _as_meant(types.get(name), value) for name, value in values.items()}


def _verbatim(schema: type[Any], key: str, value: str) -> DictConfig | None:
    """A layer of one setting that is text, or a list with one text, taken literally.

    YAML would read "run #2" as "run", and 007 as 7. None if the value has to be parsed as YAML.
    """
    if value == "null":
        return None
    kind: Any = schema
    for part in key.split("."):
        hints = get_type_hints(kind) if is_dataclass(kind) else {}
        kind = entry_of(kind) or hints.get(part)
    arguments = get_args(kind)
    is_text = kind is str or (NoneType in arguments and str in arguments)
    if kind == list[str] and not value.startswith("["):
        given: Any = [value] if value else []
    elif is_text and value and value[0] not in "[{\"'":
        given = value
    else:
        return None
    layer = OmegaConf.create()
    OmegaConf.update(layer, key, given)
    return layer


def _one_line(error: Exception) -> str:
    """First line of a library's error; the rest is internals such as reference types."""
    problem = getattr(error, "problem", None) or str(error)  # a YAML error without its excerpt
    return problem.strip().splitlines()[0]
