"""How to repair a video, by the reason that a check gave; with an ffmpeg command if one helps."""

import os
import re
import shlex

from hpm_video.data.video.frames import NO_SUCH_FILE

# Start of a reason -> what to do. SOURCE and TARGET are files; numbers in braces are filled with
# the groups of the pattern.
_REMEDIES = {
    r"is cut off: an mp4": "copy or download it again: an mp4 is unusable without its index",
    r"is cut off": "copy or download it again, or use the part that is there",
    r"is not a video": "copy or download it again",
    r"is empty": "copy or download it again",
    r"no such file": "copy or download it, or set --root to the folder where relative paths start",
    r"permission denied": "make it readable: chmod a+r SOURCE",
    r"has no video": "remove it from the list: it has no frames",
    r"is encrypted": "decrypt it with its key (32 hexadecimal digits): "
    "ffmpeg -decryption_key KEY -i SOURCE -c copy TARGET",
    r"none of its frames can be decoded": "copy or download it again, perhaps from another source",
    r"took longer than": "check it with a larger --decode-timeout-s",
    r"(changed|disappeared) while": "check it again once it no longer changes",
    r"decoding errors in|\d+ of \d+ frames lost": "copy or download it again: nothing "
    "restores lost frames; data.max_damage sets how much damage training accepts",
    r"has \d+ video tracks": "choose one: ffmpeg -i SOURCE -map 0:v:0 -c copy TARGET "
    "(0:v:1 for the second, ...)",
    r"is interlaced": "hpm-video data transcode --deinterlace, or "
    "ffmpeg -i SOURCE -vf bwdif=mode=send_frame -c:v libx264 -crf 18 TARGET.mp4",
    r"is (\d+)-bit grey that uses (\d+) bits": "keep the bits that are used: "
    r"ffmpeg -i SOURCE -vf 'lut=y=val*pow(2\,{0}-{1}),format=gray' -c:v libx264 -crf 10 "
    "-pix_fmt yuv420p TARGET.mp4",
    r"slow to read": "hpm-video data transcode makes copies that are quick to read",
    r"has frames of several sizes": "hpm-video data transcode makes copies of one size",
}


# Mistakes in paths, and corrections
_NO_PATHS = {
    r"(.*/)?\w+:/": "write a path instead of a URL: /a/b.mp4 for file:///a/b.mp4",
    r"(.*/)?~\w*/": "write out your home folder: only the shell expands ~",
    r"(.*/)?[A-Za-z]:\\": "write its path on this machine: C:\\a\\b.mp4 is a Windows path",
    r"/": "copy or download it, or correct its path in the list",
}


def remedies(path: str, reason: str) -> list[str]:
    """What to do about a file, for each part of a reason; commands can be pasted."""
    if reason == NO_SUCH_FILE:
        for start, text in _NO_PATHS.items():
            if re.match(start, path):
                return [text]
    stem, ending = os.path.splitext(os.path.basename(path))
    found = []
    for part in reason.split("; "):
        for start, text in _REMEDIES.items():
            if match := re.match(start, part):
                numbers = match.groups()
                remedy = text.format(*numbers) if numbers and "{0}" in text else text
                remedy = remedy.replace("TARGET.mp4", shlex.quote(f"{stem}_new.mp4"))
                remedy = remedy.replace("TARGET", shlex.quote(f"{stem}_new{ending}"))
                found.append(remedy.replace("SOURCE", shlex.quote(path)))
                break
    return found
