"""Everything before the batch: lists of videos, decoding, clips and views, loading, preparation.

The path to a batch: `lists.manifest` (which videos) -> `video.frame_indices` (which frames) ->
`video.frames` and `video.readers` (decoding) -> `video.crops` -> `samples.clips` (training) or
`samples.views` (evaluation) -> `loading.batches` (worker processes) -> `loading.loader`.
"""
