"""Data sets: stored arrays, batches for training, and target problems on them."""
