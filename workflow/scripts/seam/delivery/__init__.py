"""From a model and images to a folder that can be shipped: the procedures behind `seam shrink` and `seam check`."""
