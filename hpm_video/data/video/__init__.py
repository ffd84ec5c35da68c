"""From a video file to frames: which ones, read by which decoder, cut how."""
