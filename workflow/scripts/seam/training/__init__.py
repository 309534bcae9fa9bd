"""Training loops that can be interrupted, their checkpoints, and supervised training."""
