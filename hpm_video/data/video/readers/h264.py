"""Reads H.264 headers: can decoding start at a picture, and is it a frame or a field?

Pictures that refresh the image gradually, over several frames, are marked as keyframes too.
Decoding from there gives partly grey frames, or copies of others.
"""

from collections.abc import Iterator

_SLICE, _PARTITION, _IDR_SLICE, _MESSAGES, _SEQUENCE = 1, 2, 5, 6, 7
_RECOVERY_POINT = 6
_PROFILES_WITH_FORMAT = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)
_START_BYTES = 4096  # of a picture: enough for everything before its first slice


def is_clean_start(picture: bytes | memoryview, configuration: bytes) -> bool:
    """Whether a keyframe can be decoded completely by itself.

    ``picture``: its bytes, or the first of them, as stored in the container. ``configuration``: the
    decoder's "avcC" record, which says how pictures are divided; anything else means start codes.
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
                # Number of frames until recovery, in exponential Golomb code: 0 is a single 1 bit
                what == _RECOVERY_POINT and payload[:1] >= b"\x80"
                for what, payload in _messages(unit[1:])
            )
    return True  # the data end before the first slice


def _units(picture: bytes, configuration: bytes) -> Iterator[bytes]:
    """The NAL units of a picture."""
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
    """The (type, payload) of supplemental enhancement messages."""
    place = 0
    while place + 1 < len(content) and content[place] != 0x80:
        numbers = []
        for _ in range(2):  # type, then size; each is a sum that ends with a byte below 255
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


class FieldTest:
    """Detects pictures that are single fields, two of which make a frame."""

    def __init__(self, configuration: bytes) -> None:
        """``configuration``: the decoder's, as in `is_clean_start`."""
        self._configuration = configuration
        self._bits_of_number: int | None = None  # None: whole frames only
        self.is_known = False  # whether a sequence header was found
        for unit in _headers(configuration):
            if unit[0] & 31 == _SEQUENCE:
                self._read_header(unit)

    def is_field(self, picture: bytes | memoryview) -> bool:
        """Whether the picture of a packet is a field; its first bytes suffice."""
        if self.is_known and self._bits_of_number is None:
            return False
        for unit in _units(bytes(picture[:_START_BYTES]), self._configuration):
            kind = unit[0] & 31
            if kind == _SEQUENCE:  # repeated in streams without a file header
                self._read_header(unit)
            elif kind in (_SLICE, _IDR_SLICE, _PARTITION):
                if self._bits_of_number is None:
                    return False
                bits = _Bits(unit[1:])
                for _ in range(3):  # first macroblock, type, parameter set
                    bits.number()
                bits.skip(self._bits_of_number)
                return bits.bit() == 1
        return False

    def _read_header(self, unit: bytes) -> None:
        """Read the relevant start of a sequence parameter set (7.3.2.1.1 of H.264)."""
        bits = _Bits(unit[1:])
        profile = bits.skip(24) >> 16
        bits.number()
        separate = False
        if profile in _PROFILES_WITH_FORMAT:
            chroma = bits.number()
            separate = chroma == 3 and bits.bit() == 1
            bits.number()
            bits.number()
            bits.skip(1)
            if bits.bit():
                for place in range(12 if chroma == 3 else 8):
                    if bits.bit():
                        bits.scaling_list(16 if place < 6 else 64)
        length = bits.number() + 4
        order = bits.number()
        if order == 0:
            bits.number()
        elif order == 1:
            bits.skip(1)
            bits.number()
            bits.number()
            for _ in range(min(bits.number(), 255)):
                bits.number()
        bits.number()
        bits.skip(1)
        bits.number()
        bits.number()
        frames_only = bits.bit() == 1
        self.is_known = True
        self._bits_of_number = None if frames_only else length + 2 * separate


class _Bits:
    """The bits of a NAL unit, with zeros after its end."""

    def __init__(self, unit: bytes) -> None:
        content = unit.replace(b"\0\0\3", b"\0\0")  # removes emulation prevention bytes
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def skip(self, count: int) -> int:
        """Return the next bits as a number."""
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & ((1 << count) - 1)

    def bit(self) -> int:
        return self.skip(1)

    def number(self) -> int:
        """Return the next exponential Golomb code."""
        zeros = 0
        while not self.bit():
            zeros += 1
            if zeros > 32:
                return 0
        return (1 << zeros) - 1 + (self.skip(zeros) if zeros else 0)

    def scaling_list(self, size: int) -> None:
        last = scale = 8
        for _ in range(size):
            if scale:
                code = self.number()
                delta = (code + 1) // 2 if code % 2 else -(code // 2)
                scale = (last + delta) % 256
            last = scale or last


def _headers(configuration: bytes) -> Iterator[bytes]:
    """The units of a configuration: of an "avcC" record, or between start codes."""
    if configuration[:1] != b"\x01":
        yield from filter(None, configuration.split(b"\0\0\1")[1:])
        return
    place = 6
    for _ in range(configuration[5] & 31 if len(configuration) > 5 else 0):
        size = int.from_bytes(configuration[place : place + 2], "big")
        if unit := configuration[place + 2 : place + 2 + size]:
            yield unit
        place += 2 + size
