"""Speed: NumPy beside torch, in one run, interleaved, with equal threads."""
