"""SeaM: re-engineer a trained network to the weights that a target problem needs.

>>> import seam                                          # doctest: +SKIP
>>> model = seam.load("results/direct/resnet20-cifar10/binary/cat")
>>> image = seam.image("photo.jpg", 32, model.normalization)
>>> model(image).argmax(1)                               # 0: a cat, 1: anything else
"""

__version__ = "0.1.0"


def load(folder, source=None):
    """The re-engineered model in `folder`, ready for inference: see `seam.reengineer.load`."""
    from seam.reengineer import load

    return load(folder, source)


def image(path, size, normalization):
    """An image file as a model takes it: float32 [1, 3, size, size], prepared as the workflow's test images are.

    size: of the model's data set, in pixels; normalization: the model's (mean, standard deviation) per channel. Raises
    UserError where the file is no image.
    """
    from seam.data.batches import batches
    from seam.data.storage import Split

    one = Split([0], (size, size), files=[str(path)])
    return next(iter(batches(one, [0], [0], 1, normalization=normalization, workers=0)))[0]
