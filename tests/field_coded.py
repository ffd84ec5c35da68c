"""H.264 whose pictures are coded field by field (PAFF), as camcorders write it and FFmpeg cannot.

Macroblocks are raw samples (I_PCM) or, where nothing has changed since the frame before, skipped.
So a frame decoded without those before it is not right, and one that is has exactly the pixels it
was written with. The syntax is that of ITU-T H.264, sections 7.3 and 9.1.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

_Planes = list[npt.NDArray[np.uint8]]  # Y, Cb, Cr of a field
_SPS, _PPS, _IDR, _OTHER = 0x67, 0x68, 0x65, 0x61  # first bytes of NAL units


class _Bits:
    """Bits of a NAL unit, most significant first."""

    def __init__(self) -> None:
        self._bits: list[str] = []
        self._length = 0

    def fixed(self, value: int, width: int) -> None:
        self._bits.append(f"{value:0{width}b}")
        self._length += width

    def golomb(self, value: int) -> None:
        """An unsigned exponential Golomb code, ue(v)."""
        self.fixed(value + 1, 2 * (value + 1).bit_length() - 1)

    def samples(self, data: bytes) -> None:
        """Whole bytes, from the next whole byte on."""
        if padding := -self._length % 8:
            self.fixed(0, padding)
        self.fixed(int.from_bytes(data, "big"), 8 * len(data))

    def unit(self, header: int) -> bytes:
        """The NAL unit, with its start code."""
        self.fixed(1, 1)
        bits = "".join(self._bits)
        bits += "0" * (-len(bits) % 8)
        payload = int(bits, 2).to_bytes(len(bits) // 8, "big")
        escaped, zeros = bytearray(), 0
        for byte in payload:
            if zeros >= 2 and byte <= 3:
                escaped.append(3)
                zeros = 0
            escaped.append(byte)
            zeros = 0 if byte else zeros + 1
        return b"\0\0\0\1" + bytes([header]) + bytes(escaped)


def write_field_coded(
    path: Path, pictures: Sequence[npt.NDArray[np.uint8]], *, gop: int = 10, fps: int = 25
) -> Path:
    """Write pictures (H, W, 3), sides divisible by 32 and 16, as mp4, mkv or ts.

    Each field is a packet of its own, so there are twice as many packets as frames.
    """
    height, width, _ = pictures[0].shape
    assert height % 32 == 0 and width % 16 == 0, (height, width)
    headers = _headers(height, width)
    fields = _fields(pictures, gop)
    raw = path.with_name(f".{path.name}.h264")
    raw.write_bytes(headers + b"".join(data for data, _ in fields[:4]))
    with av.open(str(raw)) as template, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(template.streams.video[0])
        stream.time_base = Fraction(1, 2 * fps)
        for number, (data, is_key) in enumerate(fields):
            packet = av.Packet(headers + data if is_key else data)
            packet.stream = stream
            packet.time_base = Fraction(1, 2 * fps)
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.is_keyframe = is_key
            container.mux(packet)
    raw.unlink()
    return path


def _headers(height: int, width: int) -> bytes:
    """Sequence and picture parameters."""
    sps = _Bits()
    sps.fixed(77, 8)  # Main profile, the first with fields
    sps.fixed(0, 8)
    sps.fixed(30, 8)  # level
    for value in (
        0,
        4,
        2,
        2,
    ):  # id, 8 bits of frame_num, order of output is that of decoding, 2 refs
        sps.golomb(value)
    sps.fixed(0, 1)
    sps.golomb(width // 16 - 1)
    sps.golomb(height // 32 - 1)
    sps.fixed(0b00100, 5)  # fields, not adaptive, direct_8x8_inference, no cropping, no VUI
    pps = _Bits()
    pps.golomb(0)
    pps.golomb(0)
    pps.fixed(0b00, 2)  # CAVLC
    for _ in range(3):  # slice groups, references
        pps.golomb(0)
    pps.fixed(0, 3)
    for _ in range(3):  # quantizers
        pps.golomb(0)
    pps.fixed(0b100, 3)  # slices say whether they are deblocked
    return sps.unit(_SPS) + pps.unit(_PPS)


def _fields(pictures: Sequence[npt.NDArray[np.uint8]], gop: int) -> list[tuple[bytes, bool]]:
    """The (slice, whether it is a keyframe) of each field."""
    fields: list[tuple[bytes, bool]] = []
    before: list[_Planes] | None = None
    for number, pixels in enumerate(pictures):
        planes = _planes(pixels)
        now: list[_Planes] = [[plane[parity::2] for plane in planes] for parity in (0, 1)]
        if number % gop == 0:
            before = None
        for parity in (0, 1):
            old = None if before is None else before[parity]
            is_idr = before is None and parity == 0
            data = _slice(now[parity], old, number % gop % 256, parity, is_idr=is_idr)
            fields.append((data, is_idr))
        before = now
    return fields


def _planes(pixels: npt.NDArray[np.uint8]) -> _Planes:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    height, width, _ = pixels.shape
    planes = frame.reformat(format="yuv420p").to_ndarray()  # (1.5 H, W)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    return [planes[:height], chroma[0], chroma[1]]


def _slice(planes: _Planes, old: _Planes | None, frame: int, parity: int, *, is_idr: bool) -> bytes:
    bits = _Bits()
    bits.golomb(0)
    bits.golomb(7 if old is None else 5)  # I or P
    bits.golomb(0)
    bits.fixed(frame, 8)
    bits.fixed(0b10 | parity, 2)  # a field, which
    if is_idr:
        bits.golomb(0)
    if old is not None:
        bits.fixed(0b00, 2)  # the usual references
    bits.fixed(0, 2 if is_idr else 1)
    bits.golomb(0)  # quantizer
    bits.golomb(1)  # no deblocking
    height, width = planes[0].shape
    skipped = 0
    for top in range(0, height, 16):
        for left in range(0, width, 16):
            block = _block(planes, top, left)
            if old is not None and block == _block(old, top, left):
                skipped += 1
                continue
            if old is not None:
                bits.golomb(skipped)
                skipped = 0
            bits.golomb(25 if old is None else 30)  # I_PCM
            bits.samples(block)
    if skipped:
        bits.golomb(skipped)
    return bits.unit(_IDR if is_idr else _OTHER)


def _block(planes: _Planes, top: int, left: int) -> bytes:
    """Samples of a macroblock."""
    luma, *chroma = planes
    parts = [luma[top : top + 16, left : left + 16]]
    parts += [p[top // 2 : top // 2 + 8, left // 2 : left // 2 + 8] for p in chroma]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
