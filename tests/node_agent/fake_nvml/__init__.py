"""What a node without GPUs imports to have some; see `pynvml`."""
