"""CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32 px in 10 classes."""

from __future__ import annotations

from seam.data.kinds.cifar import CifarKind

KIND = CifarKind(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels="labels",
    label_names="label_names",
    classes=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
)
