"""The estimate of what a run takes."""
