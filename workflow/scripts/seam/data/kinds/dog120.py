"""Stanford Dogs (Khosla et al. 2011): 12,000 training and 8,580 test images of 120 breeds, all from ImageNet."""

from seam.data.kinds import imagefolder, published
from seam.errors import UserError

SIZE = 224
HOME = "http://vision.stanford.edu/aditya86/ImageNetDogs/"
LISTS = {"train": ("train_list.mat", "lists/train_list.mat"), "test": ("test_list.mat", "lists/test_list.mat")}
SOURCE = published.Source(
    kind="dog120",
    home=HOME,
    layout=("Images", *LISTS.values()),
    downloads=(
        published.Download(
            HOME + "images.tar",
            "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            wanted=("Images",),
        ),
        published.Download(
            HOME + "lists.tar",
            "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            wanted=("train_list.mat", "test_list.mat"),
        ),
    ),
)


def missing(entry):
    return published.missing(entry, SOURCE)


def names(entry):
    published.check(entry, SOURCE)
    return published.read_names("dog120_classes")


def augmentation(size):
    return imagefolder.augmentation(size)


def load(entry, wanted, cache):
    """`file_list` has the paths, `breed/file`, and `labels` a number for each."""
    root = published.root(entry, SOURCE, cache)
    listed = {}
    for split, places in LISTS.items():
        path = published.find(root, *places)
        files, labels = published.read_mat(path, "file_list", "labels")
        if files.dtype != object or any(file.size != 1 for file in files):
            raise UserError(f"{path} has no list of paths as its file_list: get it anew.")
        files = [str(file.item()) for file in files]  # of MATLAB's cells
        breeds = [file.partition("/")[0] for file in files]
        pairs = set(zip(breeds, labels.tolist(), strict=False))
        if len(labels) != len(files) or not len(pairs) == len(set(breeds)) == len(set(labels.tolist())):
            raise UserError(f"{path} has {len(labels)} labels that do not fit its {len(files)} paths: get it anew.")
        listed[split] = list(zip(files, breeds, strict=True))
    return published.splits(entry, root / "Images", listed, names(entry), wanted, SIZE)
