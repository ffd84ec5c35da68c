"""Videos broken on purpose, in the ways that files are found broken."""

import random
import struct
from pathlib import Path

import av


def packet_ends(path: Path) -> list[int]:
    """Where in the file the data of each frame end, in the order of decoding."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        return [p.pos + p.size for p in packets]


def truncate(source: Path, target: Path, num_bytes: int) -> Path:
    """The first bytes of a file."""
    target.write_bytes(source.read_bytes()[:num_bytes])
    return target


def flip_bytes(source: Path, target: Path, number: int, *, seed: int, start: int = 0) -> Path:
    """A file with so many random bytes, from `start` on, changed."""
    rng, data = random.Random(seed), bytearray(source.read_bytes())
    for place in rng.sample(range(start, len(data)), number):
        data[place] ^= rng.randrange(1, 256)
    target.write_bytes(data)
    return target


def claim_more_frames(source: Path, target: Path, extra: int) -> Path:
    """An mp4 whose tables of sizes (stsz) and times (stts) go on for `extra` frames."""
    data = bytearray(source.read_bytes())
    # version and flags, then in stsz a common size, in stts a number of entries, and the count
    for name in (b"stsz", b"stts"):
        place = data.index(name) + 12
        (count,) = struct.unpack_from(">I", data, place)
        struct.pack_into(">I", data, place, count + extra)
    target.write_bytes(data)
    return target
