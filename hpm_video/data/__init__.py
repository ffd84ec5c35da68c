"""From a list of videos to batches of uint8 clips: manifest, video, clips, transforms, loader."""
