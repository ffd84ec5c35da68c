"""Settings of any schema of nested dataclasses, out of defaults, a YAML and words of a command.

The only module that reads YAML.
"""

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpm_video.config.schema import check_settings, entry_of

Config = TypeVar("Config")

# Groups of a YAML that tell other commands where and how a job goes on: no settings of its own.
_NOT_OF_JOBS = ("slurm",)
_NULLS = ("", "~", "null", "Null", "NULL")


def load_config(
    schema: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Defaults of ``schema`` < the YAML at ``path`` < overrides ``group.key=value``.

    ``path`` may name a variant of a list, as in `find_config`. Raises ValueError, one line, for an
    unknown key (with a suggestion), a wrong type or value; FileNotFoundError when the YAML, or the
    variant, is missing.
    """
    layers: list[Any] = [OmegaConf.structured(schema)]
    if path is not None:
        layer, words = _read(path, OmegaConf.load)
        overrides = [*words_of(words), *overrides]
        if not isinstance(layer, DictConfig):
            raise ValueError(f"config ({path}) must hold groups of settings, key: value")
        for group in _NOT_OF_JOBS:
            layer.pop(group, None)
        try:
            layers.append(_checked(schema, layer))
        except ValueError as error:
            raise ValueError(f"config ({path}): {error}") from error
    for override in overrides:
        key, _, value = override.partition("=")
        if "=" not in override or not all(key.split(".")):
            raise ValueError(f"setting ({override}) must have the form group.key=value")
        layer = _verbatim(schema, key, value)
        try:
            layer = OmegaConf.from_dotlist([override]) if layer is None else layer
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(f"setting ({override}) cannot be read: {_one_line(error)}") from error
        layers.append(_checked(schema, layer))
    try:
        return _merged(layers)
    except OmegaConfBaseException as error:
        raise ValueError(f"settings cannot be resolved: {_one_line(error)}") from error


@dataclass(frozen=True)
class _Variant:
    """An entry of a list of variants: what it changes, what of the literature that stands for."""

    varies: str = ""
    stands_for: str = ""
    published: str = ""
    settings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Variants:
    variants: dict[str, _Variant] = field(default_factory=dict)


def find_config(path: str | Path) -> tuple[Path, str]:
    """The file behind the name of a config, and the variant to take from it ("" for a plain file).

    ``LIST.yaml:NAME`` is a variant of a list, a YAML with the groups ``base`` and ``variants``.
    ``FOLDER/NAME.yaml``, where there is no such file, is that variant of FOLDER/variants.yaml.
    Raises FileNotFoundError.
    """
    file = Path(path)
    if file.is_file():
        return file, ""
    if file.is_dir():
        raise FileNotFoundError(f"config ({path}) must be a file: is a folder")
    place, _, name = str(path).rpartition(":")
    if Path(place).is_file():
        return Path(place), name
    listing = file.with_name("variants.yaml")
    if file.suffix == ".yaml" and listing.is_file():
        return listing, file.stem
    raise FileNotFoundError(f"config ({path}) does not exist")


def variant_settings(path: str | Path) -> list[str]:
    """The settings that a variant, ``LIST.yaml:NAME``, adds to its list's base: texts of
    ``group.key=value``. Raises as `load_config` does."""
    _, settings = _read(path, OmegaConf.load)
    if not find_config(path)[1]:
        raise ValueError(f"config ({path}) must be a variant of a list, as LIST.yaml:NAME")
    return settings


def words_of(settings: Sequence[str], *, name: str = "settings") -> list[str]:
    """``group.key=value`` each, of texts that may hold several, separated as in a shell."""
    words = []
    for text in settings:
        try:
            words += shlex.split(text)
        except ValueError as error:
            raise ValueError(f"{name} ({text}) must have its quotation marks in pairs") from error
    return words


def _read(path: str | Path, load: Callable[[Path], Any]) -> tuple[Any, list[str]]:
    """What a YAML holds; for a variant, the base of its list and the settings it adds to that."""
    file, name = find_config(path)
    try:
        layer = load(file)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"config ({path}) is not YAML: {_one_line(error)}{line}") from error
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


def read_group(path: str | Path, group: str) -> Any:
    """One group of a YAML that is not the job's, with all scalars as the texts that stand there.

    Empty and null are None; a group that is not there is empty. Raises as `load_config` does.
    """
    layer, _ = _read(path, lambda file: yaml.load(file.read_text("utf-8"), yaml.BaseLoader))
    group_of = layer.get(group) if isinstance(layer, dict) else None
    if isinstance(group_of, dict):
        return {key: None if value in _NULLS else value for key, value in group_of.items()}
    return group_of or {}


def config_from_dict(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from the plain dict that `config_to_dict` gave, e.g. out of a checkpoint."""
    layer = _checked(schema, OmegaConf.create(dict(values)))
    return _merged([OmegaConf.structured(schema), layer])


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of numbers, strings and lists."""
    return yaml.safe_load(config_to_yaml(config))


def config_to_yaml(config: Any) -> str:
    """All settings, resolved, in the order they are declared."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def read_stored(path: Path) -> dict[str, Any]:
    """Plain nested settings out of a file that holds the text of `config_to_yaml`.

    Raises ValueError where it holds something else, OSError where it cannot be read.
    """
    values = None
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold the settings of a run or a study")
    return values


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two plain config dicts."""
    keys: list[str] = []
    for key in {**one, **other}:
        mine, theirs = one.get(key), other.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            keys += differing_keys(mine, theirs, f"{prefix}{key}.")
        elif mine != theirs:
            keys.append(f"{prefix}{key}")
    return keys


def _merged(layers: Sequence[Any]) -> Any:
    """The config that layers of settings, the schema first, make; later ones override."""
    return OmegaConf.to_object(OmegaConf.merge(*layers))


def _checked(schema: type[Any], layer: Any) -> Any:
    """A layer of settings; ValueError in plain words where it does not fit the schema."""
    values = _as_meant(schema, OmegaConf.to_container(layer, resolve=False))
    check_settings(schema, values)
    return OmegaConf.create(values)


def _as_meant(schema: Any, values: Any) -> Any:
    """The same values, but a text where a list of texts is due as a list of one, and YAML's true
    and false as words where words are due."""
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
    """A layer of one setting that is a text, with any characters, or a list of one text; None where
    YAML has to say what the value is: "run #2" would be "run" to it, and 007 a 7."""
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
    """What a library says is wrong: what follows is internals such as reference types."""
    problem = getattr(error, "problem", None) or str(error)  # of YAML: without an excerpt
    return problem.strip().splitlines()[0]
