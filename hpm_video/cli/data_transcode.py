"""``hpm-video data transcode``."""

import argparse
import re
from fractions import Fraction

from hpm_video.cli.options import add_decoding, add_numbers, add_one_manifest, add_output_dir
from hpm_video.runtime.files import printable

HELP = "re-encode the videos of a list, so that they are small and quick to decode"

_MAX_NAMED = 20  # bad videos named on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hpm_video.data.prepare.encode import PRESETS, Encoding

    usual = Encoding()
    add_one_manifest(parser)
    add_output_dir(parser, "folder for the new videos and their list", required=True)
    meanings = {
        "short_side": "shorter side in pixels; smaller videos keep theirs",
        "gop": "frames between keyframes",
        "crf": "quality of x264, lower is better",
    }
    add_numbers(parser, meanings, vars(usual))
    text = "preset of x264 (default %(default)s)"
    parser.add_argument("--preset", choices=PRESETS, default=usual.preset, help=text)
    text = "new frame rate, such as 25 or 30000/1001 (default: keep every frame)"
    parser.add_argument("--fps", type=_rate, help=text)
    text = "deinterlace interlaced videos"
    parser.add_argument("--deinterlace", action="store_true", help=text)
    text = "cut rows that are parts of videos into files of their own"
    parser.add_argument("--cut", action="store_true", help=text)
    text = "videos per tar (WebDataset shards), instead of single files"
    parser.add_argument("--per-shard", type=int, metavar="N", help=text)
    text = "process only the K-th of N parts; after all N, run once without it"
    parser.add_argument("--part", default="1/1", metavar="K/N", help=text)
    text = "decoder with which to time reading, as data.decoder in training (default %(default)s)"
    add_decoding(parser, timeout_s=600, decoder=text)


def _rate(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        rule = f"({text}) must be a number, such as 25 or 30000/1001"
        raise argparse.ArgumentTypeError(rule) from error


def run(arguments: argparse.Namespace) -> int:
    """Encode the videos of a list; returns 1 if some could not be encoded, else 0."""
    from hpm_video.data.prepare.encode import Encoding
    from hpm_video.data.prepare.transcode import transcode_manifest
    from hpm_video.data.prepare.verdict import DAMAGED, USED

    part = re.fullmatch(r"(\d+)/(\d+)", arguments.part)
    if part is None:
        raise ValueError(f"part ({arguments.part}) must be K/N, such as 1/8")
    names = ("short_side", "gop", "crf", "preset", "fps", "deinterlace")
    done = transcode_manifest(
        arguments.manifest,
        arguments.output_dir,
        Encoding(**{name: getattr(arguments, name) for name in names}),
        root=arguments.root,
        decoder=arguments.decoder,
        num_workers=arguments.num_workers,
        timeout_s=arguments.decode_timeout_s,
        part=(int(part[1]), int(part[2])),
        cut=arguments.cut,
        per_shard=arguments.per_shard,
    )
    if done.num_before:
        print(f"{done.num_before:,} videos were already done by an earlier run")
    if not done.rows:
        print(f"part {arguments.part}: {done.num_new:,} videos processed")
        return 0
    bad = [row for row in done.rows if row.get("status", "").strip() not in USED]
    damaged = [row for row in done.rows if row.get("status", "").strip() == DAMAGED]
    for title, rows in (("left out", bad), ("damaged", damaged)):
        for row in rows[:_MAX_NAMED]:
            print(f"{title}: {printable(row['source'])}: {printable(row.get('reason', ''))}")
        if len(rows) > _MAX_NAMED:
            print(f"{title}: {len(rows) - _MAX_NAMED:,} more, see the list")
    print(f"{len(done.rows):,} videos: {len(done.rows) - len(bad):,} encoded")
    if (gain := done.gain) is not None:
        before_s, after_s = gain.clip_s
        print(
            f"size: {gain.source_bytes / 1e9:.4g} -> {gain.num_bytes / 1e9:.4g} GB "
            f"({gain.num_bytes / gain.source_bytes:.2f} x)"
        )
        print(
            f"reading clips of 16 frames: {1 / before_s:.1f} -> {1 / after_s:.1f} per second "
            f"({before_s / after_s:.1f} x), {gain.num_timed} videos timed"
        )
    print(printable(str(done.manifest)))
    return 1 if bad else 0
