"""Lists of videos: manifests, other people's lists, class names."""
