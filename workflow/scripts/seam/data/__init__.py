"""Data sets: opened arrays, mini-batches for training, target problems on them, and their preparation."""
