"""Lists of videos: manifests, formats of other projects, class names."""
