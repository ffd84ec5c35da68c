"""The stages of `tools/gpu_check.py`: one file each, run by a process of its own."""
