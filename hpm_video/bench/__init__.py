"""``hpm-video bench``: what training costs: time, memory, loading, multiply-adds, many GPUs."""
