"""Limits for sizes that a file claims, checked before memory is allocated."""

from hpm_video.runtime.sandbox import Limits

MOST_PIXELS = 2**26  # per picture: 8192 x 8192
MOST_CLIP_BYTES = 4 * 2**30  # for the frames of one request
MOST_PACKETS = 2**23  # per file: 78 hours at 30 frames per second
# Memory of a reading process beyond that at its start: a clip, two copies of it while it is
# cropped, and the decoder's own, which is far less
READING = Limits(3 * MOST_CLIP_BYTES)
WRITING = Limits(3 * MOST_CLIP_BYTES, may_write=True)
