"""``hpm-video bench ablation``: variants of the method x seeds x data sets, compared in pairs.

`plan` says what cells there are, `calibration` what a step of each variant takes, `cell` runs one,
`runner` all of them, `statistics` compares, `report` and `plots` show it.
"""
