"""SeaM: re-engineer a trained network to the weights that a target problem needs.

>>> import seam                                          # doctest: +SKIP
>>> model = seam.load("results/direct/resnet20-cifar10/binary/cat")
>>> model(images).argmax(1)                              # 0: a cat, 1: anything else
"""

__version__ = "0.1.0"


def load(folder, source=None):
    """The re-engineered model in `folder`, ready for inference: see `seam.reengineer.load`."""
    from seam.reengineer import load

    return load(folder, source)
