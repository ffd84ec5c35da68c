"""``hpm-video bench ablation``: variants of the method x seeds x data sets, compared in pairs.

`cells` says which cells a study has and `calibration` what a step of each variant takes; `cell`
runs one and `runner` all of them; `comparison` compares, `summary` and `plots` show it.
"""
