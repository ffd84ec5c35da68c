"""Whether decoding H.264 may begin at a picture that calls itself a keyframe.

Pictures that refresh the image bit by bit, over several frames, call themselves so too: whoever
begins there gets frames that are partly grey, or copies of others.
"""

from collections.abc import Iterator

_SLICE, _IDR_SLICE, _MESSAGES = 1, 5, 6
_RECOVERY_POINT = 6


def is_clean_start(picture: bytes | memoryview, configuration: bytes) -> bool:
    """Whether a keyframe is whole by itself.

    ``picture``: its bytes, or the first of them, as they stand in the container. ``configuration``:
    the decoder's "avcC" record, which says how pictures are divided; anything else stands for start
    codes.
    """
    recovers_at_once = False
    for unit in _units(bytes(picture), configuration):
        kind = unit[0] & 31
        if kind == _IDR_SLICE:
            return True
        if kind == _SLICE:
            return recovers_at_once
        if kind == _MESSAGES:
            recovers_at_once |= any(
                # How many frames it takes, an exponential Golomb code: 0 is a single 1
                what == _RECOVERY_POINT and payload[:1] >= b"\x80"
                for what, payload in _messages(unit[1:])
            )
    return True  # cut off before the first slice: what is read here is the beginning only


def _units(picture: bytes, configuration: bytes) -> Iterator[bytes]:
    """The parts (NAL units) of a picture."""
    if configuration[:1] == b"\x01" and len(configuration) > 4:
        bytes_of_length = (configuration[4] & 3) + 1
        place = 0
        while place + bytes_of_length < len(picture):
            start = place + bytes_of_length
            place = start + int.from_bytes(picture[place:start], "big")
            if place > start:
                yield picture[start:place]
        return
    yield from filter(None, picture.split(b"\x00\x00\x01")[1:])


def _messages(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, payload) of supplemental messages."""
    place = 0
    while place + 1 < len(content) and content[place] != 0x80:
        numbers = []
        for _ in range(2):  # type, then size, each a sum that ends with a byte below 255
            number = 0
            while place < len(content) and content[place] == 255:
                number += 255
                place += 1
            number += content[place] if place < len(content) else 0
            place += 1
            numbers.append(number)
        what, size = numbers
        yield what, content[place : place + size]
        place += size
