"""Archives in CIFAR's published layout on a tiny scale: pickles as Python 2 and its NumPy wrote them."""

import io
import pickle
import struct
import tarfile

import numpy as np


class _Python2Pickler(pickle._Pickler):
    """Text is Python 2's `str`, truth a number, and NumPy's functions lie where they lay: in `numpy.core`."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        raw = text.encode("latin1") if isinstance(text, str) else text
        short = len(raw) < 256
        self.write((b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))) + raw)
        self.memoize(text)

    def save_truth(self, truth):
        self.save(int(truth))

    def save_global(self, obj, name=None):
        if obj.__module__ == "numpy._core.multiarray":
            self.write(f"cnumpy.core.multiarray\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[bool] = save_truth
    dispatch[type(np.arange)] = dispatch[type(np.load)] = save_global


def python2_pickle(content):
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def archive(path, members):
    """A .tar.gz of {name: bytes, or a tarfile.TarInfo without content}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def images(count, seed):
    """uint8 [count, 3072]: the red, the green, then the blue plane of each image, row by row."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def cifar10_members(names):
    """The published files with 20 images in each batch; {"train" or "test": (data, labels)} beside them."""
    members, content = {}, {"train": ([], []), "test": ([], [])}
    for number, batch in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data, labels = images(20, number), [(3 * place + number) % 10 for place in range(20)]
        members[f"cifar-10-batches-py/{batch}"] = python2_pickle(
            {
                "batch_label": "testing batch 1 of 1" if batch == "test_batch" else f"training batch {number + 1} of 5",
                "labels": labels,
                "data": data,
                "filenames": [f"image_s_{place:06}.png" for place in range(20)],
            }
        )
        split = content["test" if batch == "test_batch" else "train"]
        split[0].append(data)
        split[1].extend(labels)
    members["cifar-10-batches-py/batches.meta"] = python2_pickle(
        {"num_cases_per_batch": 20, "label_names": names, "num_vis": 3072}
    )
    members["cifar-10-batches-py/readme.html"] = b"<meta HTTP-EQUIV='REFRESH'>"
    return members, {name: (np.concatenate(data), labels) for name, (data, labels) in content.items()}


def cifar100_members(names, groups):
    """The published files with 2 training images and 1 test image of each class."""
    members, content, coarse_names = {}, {}, sorted(groups)
    coarse = {names.index(fine): coarse_names.index(group) for group, found in groups.items() for fine in found}
    for split, count in (("train", 200), ("test", 100)):
        data, labels = images(count, count), [(7 * place) % 100 for place in range(count)]
        members[f"cifar-100-python/{split}"] = python2_pickle(
            {
                "filenames": [f"{names[label]}_s_{place:06}.png" for place, label in enumerate(labels)],
                "batch_label": f"{split}ing batch 1 of 1",
                "fine_labels": labels,
                "coarse_labels": [coarse[label] for label in labels],
                "data": data,
            }
        )
        content[split] = (data, labels)
    members["cifar-100-python/meta"] = python2_pickle({"fine_label_names": names, "coarse_label_names": coarse_names})
    return members, content
