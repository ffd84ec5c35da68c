"""Find all faults of a config at once, each with a valid value to propose.

The checks of a config stop at the first fault. To find the next one, a valid value takes the place
of the faulty one. Candidates are values that the message names, earlier values of the setting, and
limits of its rule.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpm_video.config.schema import as_yaml

Check = Callable[[Any], None]  # raises ValueError for a config with a fault

_MOST_FAULTS = 30
_KEY = r"[a-z]\w*(?:\.\w+)+"
_ABOUT = re.compile(rf"({_KEY}) \(")  # start of a fault message
_NOT_THERE = object()


def mended(layers: Sequence[Any], faults: list[str], check: Check) -> Any:
    """Merge layers of settings, the schema first; later ones override.

    Faults that the config's own checks and ``check`` find are added to ``faults`` and replaced by
    valid values. Returns None if no valid value is known for one.
    """
    layers = list(layers)
    while True:
        whole = OmegaConf.merge(*layers)
        config, refusal = _built(whole, check)
        if refusal is None:
            return config
        found = (
            _what_would_do(layers, whole, refusal, check) if len(faults) < _MOST_FAULTS else None
        )
        if found is None:
            faults.append(refusal)
            return None
        key, value = found
        word = f"{key}={value}"
        faults.append(refusal if word in refusal else f"{refusal}; try {shlex.quote(word)}")
        layers.append(OmegaConf.from_dotlist([word]))


def _built(whole: Any, check: Check) -> tuple[Any, str | None]:
    """The config, or the fault that its checks report."""
    try:
        config = OmegaConf.to_object(whole)
        check(config)
    except OmegaConfBaseException:  # raised first, since some are ValueErrors too
        raise
    except ValueError as error:
        return None, str(error)
    return config, None


def _what_would_do(
    layers: Sequence[Any], whole: Any, refusal: str, check: Check
) -> tuple[str, str] | None:
    """A setting and value, as typed, that remove the fault and cause no similar one."""
    about = _ABOUT.match(refusal)
    for key, value in _candidates(layers, refusal, about[1] if about else None):
        if _value(whole, key) is _NOT_THERE:
            continue
        try:
            changed = OmegaConf.merge(whole, OmegaConf.from_dotlist([f"{key}={value}"]))
            _, left = _built(changed, check)
        except (OmegaConfBaseException, ValueError):  # wrong type for the setting
            continue
        again = None if left is None else _ABOUT.match(left)
        if left is None or (left != refusal and not (again and about and again[1] == about[1])):
            return key, value
    return None


def _candidates(
    layers: Sequence[Any], refusal: str, about: str | None
) -> Iterator[tuple[str, str]]:
    """Settings and values, as typed, that may remove a fault; most likely first."""
    for key, value in re.findall(rf"({_KEY})=([^\s,;:)]+)", refusal):
        yield key, value
    if about is None:
        return
    yield from _before(layers, about)
    rule = refusal.partition(" must ")[2]
    words = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?|\bauto\b|\bnull\b", rule)
    yield from ((about, word) for word in words)
    for key in re.findall(_KEY, rule):  # other settings in the rule
        yield from _before(layers, key)


def _before(layers: Sequence[Any], key: str) -> Iterator[tuple[str, str]]:
    """Earlier values of a setting, latest first."""
    for layer in reversed(layers):
        if (value := _value(layer, key)) is not _NOT_THERE:
            yield key, as_yaml(value)


def _value(layer: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(layer, DictConfig) or name not in layer:
            return _NOT_THERE
        layer = layer[name]
    return OmegaConf.to_container(layer) if OmegaConf.is_config(layer) else layer
