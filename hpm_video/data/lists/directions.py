"""Checks by class names whether mirroring changes the meaning of a video."""

import re
from collections.abc import Sequence

from hpm_video.data.lists.rows import shown

_MIRRORED = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "lefthand": "righthand",
    "clockwise": "counterclockwise",
}
_MIRRORED |= {right: left for left, right in _MIRRORED.items()}


def check_flip(classes: Sequence[str]) -> list[str]:
    """Return the class names that mention a direction but have no mirrored counterpart.

    Raises ValueError if one class is the mirror image of another, such as "from left to right".
    """
    words = {_words(name): name for name in classes}
    directed = []
    for key, name in words.items():
        mirrored = tuple(_MIRRORED.get(word, word) for word in key)
        if mirrored == key:
            continue
        if mirrored in words:
            raise ValueError(
                f"data.flip (true) must be false: mirrored, '{shown(name)}' is "
                f"'{shown(words[mirrored])}'"
            )
        directed.append(name)
    return directed


def _words(name: str) -> tuple[str, ...]:
    """The words of "Turn left", "turn_left" or "TurnLeft"; "counter clockwise" is one word."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).casefold()
    words = re.sub(r"(counter|anti)[\s_-]*clockwise", "counterclockwise", spaced)
    return tuple(re.findall(r"[^\W_]+", words))
