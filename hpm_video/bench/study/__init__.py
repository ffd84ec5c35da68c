"""``hpm-video bench ablation``: variants of the method x seeds x data sets, compared in pairs.

`cells` lists the cells of a study, `calibration` measures the step time of each variant, `cell`
runs one cell and `runner` all of them. `comparison` computes differences, which `summary` and
`plots` present.
"""
