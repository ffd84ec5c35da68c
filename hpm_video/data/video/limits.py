"""How large what a file claims may be: checked before memory is taken for it."""

from hpm_video.runtime.sandbox import Limits

MOST_PIXELS = 2**26  # of a picture: 8192 x 8192
MOST_CLIP_BYTES = 4 * 2**30  # of the frames that are asked for at once
MOST_PACKETS = 2**23  # of a file: 78 hours of 30 frames a second
# Of a process that reads, beside what it has at its start: a clip, two copies of it on its way to
# crops, and what a decoder holds, which is far less
READING = Limits(3 * MOST_CLIP_BYTES)
WRITING = Limits(3 * MOST_CLIP_BYTES, may_write=True)
