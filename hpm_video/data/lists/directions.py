"""Whether mirroring changes what a video shows, as far as class names tell."""

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
    """Return the class names that speak of a direction, though none of them has a mirrored twin.

    Raises ValueError: a class is another one in the mirror, as "from left to right" is.
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
    """Words of a name like "Turn left", "turn_left" or "TurnLeft"; one for counter clockwise."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).casefold()
    words = re.sub(r"(counter|anti)[\s_-]*clockwise", "counterclockwise", spaced)
    return tuple(re.findall(r"[^\W_]+", words))
