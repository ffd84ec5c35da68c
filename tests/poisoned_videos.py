"""Files that strangers made to harm who reads them, each of under 1 kB."""

import struct

BOMB_SIDE = 16_000  # pixels that the GIF claims


def _box(name: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", 8 + len(data), name) + data


_TYPE = _box(b"ftyp", b"isom", bytes(4), b"isomavc1")


def endless_box() -> bytes:
    """48 bytes, whose second box ends where no place in a file can be."""
    return _TYPE + struct.pack(">I4sQ", 1, b"mdat", 2**64 - 8) + bytes(8)


def far_box() -> bytes:
    """The same with an end that is a number of 64 bits with a sign, past its largest."""
    return _TYPE + struct.pack(">I4sQ", 1, b"free", 2**63 + 5) + bytes(100)


def no_clock_far_chunk() -> bytes:
    """A track of one frame with no units of time, whose only chunk is past 2^63."""
    clock = struct.pack(">4xIIII", 0, 0, 0, 1)
    entry = _box(
        b"avc1", bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", 64, 48), bytes(50)
    )
    table = _box(
        b"stbl",
        _box(b"stsd", struct.pack(">4xI", 1), entry),
        _box(b"stts", struct.pack(">4xIII", 1, 1, 0)),
        _box(b"stsc", struct.pack(">4xIIII", 1, 1, 1, 1)),
        _box(b"stsz", struct.pack(">4xII", 100, 1)),
        _box(b"co64", struct.pack(">4xIQ", 1, 2**63 + 9)),
    )
    handler = _box(b"hdlr", bytes(8), b"vide", bytes(13))
    media = _box(b"mdia", _box(b"mdhd", clock, bytes(4)), handler, _box(b"minf", table))
    return _TYPE + _box(b"moov", _box(b"mvhd", clock, bytes(80)), _box(b"trak", media))


def bomb() -> bytes:
    """A GIF of one pixel that claims many more: 1 GB for each picture that a decoder holds."""
    size = struct.pack("<HH", BOMB_SIDE, BOMB_SIDE)
    pixel = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x08\x02\x00\x01\x00"
    return b"GIF89a" + size + b"\xf7\0\0" + bytes(768) + pixel + b"\x3b"


POISONS = {
    "endless_box.mp4": endless_box(),
    "far_box.mp4": far_box(),
    "no_clock_far_chunk.mp4": no_clock_far_chunk(),
    "bomb.gif": bomb(),
}


def playlists(target: str) -> dict[str, bytes]:
    """What FFmpeg takes for instructions to open another file or address, each by its name."""
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
    live = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" mediaPresentationDuration="PT2S">'
        f"<Period><AdaptationSet><Representation id='1'><BaseURL>{target}</BaseURL>"
        "</Representation></AdaptationSet></Period></MPD>"
    )
    sdp = (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    texts = {
        "hls.m3u8": hls,
        "hls.mp4": hls,
        "live.m3u8": live,
        "bare.m3u8": f"{target}\n",
        "concat.txt": f"ffconcat version 1.0\nfile '{target}'\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash.mpd": dash,
        "dash.mp4": dash,
        "stream.sdp": sdp,
        "stream.mp4": sdp,
        "rtsp.rtsp": f"[Reference]\nRef1={target}\n",
        "webm.xml": f"<AdaptationSet>{target}",
        "filters.lavfi": f"movie={target}",
        "script.avs": f'AVISource("{target}")',
        "images.imf": f"<CompositionPlaylist>{target}</CompositionPlaylist>",
        "subtitles.idx": f"# VobSub index file, v7\n{target}\n",
    }
    return {name: text.encode() for name, text in texts.items()}
