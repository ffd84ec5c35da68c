"""``hpm-video bench``: what a step, a mask and the ranking loss cost, against the naive forms."""
