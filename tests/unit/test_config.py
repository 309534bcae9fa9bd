"""The configuration: what is refused and how, what is filled in, which problems and students come of it."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from seam.config import entries, plan, sources, startup
from seam.config.checks.models import torchvision_weights
from seam.config.document import document
from seam.config.entries import folder_name
from seam.config.plan import (
    dataset_entry,
    left_out,
    model_files,
    model_settings,
    source_weights,
    stacks,
    target_problems,
    validate,
)
from seam.config.schema import merged, require_unique_keys
from seam.data.kinds.registry import why_unavailable
from seam.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.yaml"
SEARCH = {
    "epochs": 300, "batch_size": 64, "lr_mask": 0.05, "lr_head": 0.1, "alpha": 1.0, "head_every": 5,
    "schedule": "published", "selection": "holdout", "holdout": 0.2, "patience": 50, "tolerance": 0.0,
    "accuracy_worth": 5.0, "evaluate_every": 1,
}  # fmt: skip
# Settings that a search has only where they are not these.
UNUSED = {
    **{"penalty": None, "budget": None, "granularity": "weight", "channels": None},
    **{"balance": "auto", "few_images": 50, "initial_head": "random"},
}
TRANSFER = {  # as published, but for selection and holdout
    "batch_size": 64,
    "selection": "holdout",
    "holdout": 0.1,
    "head": {"epochs": 300, "patience": 30, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0001},
    "search": {"epochs": 300, "lr_mask": 0.05, "lr_last": 0.001, "alpha": 0.5, "initial_masks": "equal"},
    "finetune": {
        "epochs": 300, "patience": 30, "lr": 0.005, "lr_last": 0.05, "momentum": 0.0, "weight_decay": 0.0001,
        "keep_zeros": False,
    },
    "standard": {
        "epochs": 300, "patience": 300, "lr": 0.005, "lr_last": 0.05, "momentum": 0.0, "weight_decay": 0.0001,
    },
    "retrain": {"epochs": 300, "patience": 300, "lr": 0.1, "lr_last": 0.1, "momentum": 0.5, "weight_decay": 0.0001},
    "remos": {
        "epochs": 300, "patience": 300, "lr": 0.005, "lr_last": 0.05, "momentum": 0.0, "weight_decay": 0.0001,
        "keep_zeros": False, "ratio": 0.1, "coverage": 0.5,
    },
}  # fmt: skip
ATTACK = {
    "eps": 0.1, "step": 0.01, "steps": 40, "clip": [-2.2, 2.2], "target": 1000.0, "weight": 0.1, "batch_size": 64,
    "adaptive": False,
}  # fmt: skip
STUDENTS = ["standard", "retrain", "seam", "magnitude", "random"]
TARGETS = ["mit67", "cub200", "flower102", "dog120", "action40"]

SMALL = """
datasets:
  digits: {kind: digits}
  cifar10: {kind: cifar10}
  cifar100: {kind: cifar100}
  pets: {kind: imagefolder, root: pets}
  imagenet: {kind: imagenet}
  birds: {kind: cub200}
models:
  digits-resnet20: {architecture: resnet20, dataset: digits, weights: train}
  resnet20-cifar10: {architecture: resnet20, dataset: cifar10, weights: hub}
  resnet20-cifar100: {architecture: resnet20, dataset: cifar100, weights: hub}
  resnet50: {architecture: "torchvision:resnet50", dataset: imagenet, weights: IMAGENET1K_V1}
  mine:
    architecture: my_models.py:build
    dataset: pets
    weights: mine.pt
    normalization: {mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
direct_reuse:
  - {model: resnet20-cifar10, problem: binary, targets: [cat, ship]}
  - {model: resnet20-cifar100, problem: multiclass, targets: {water: [otter, seal]}}
indirect_reuse:
  - {model: resnet50, datasets: [pets, digits], thresholds: [0.6, 0.4], compare_at: [0.6]}
  - {model: digits-resnet20, datasets: [pets], students: [seam, standard]}
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A right configuration, with the files it names in the working directory."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for name in ("cat", "golden retriever", "rabbit"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
    (tmp_path / "my_models.py").write_text("import nowhere\n\ndef build(classes):\n    return nowhere.Net(classes)\n")
    (tmp_path / "broken.py").write_text("def build(:\n")
    (tmp_path / "braces{}.pt").touch()
    (tmp_path / "braces{}.txt").write_text("cat\nrabbit\ngolden retriever\n")
    (tmp_path / "mine.pt").write_bytes(b"")
    return yaml.safe_load(SMALL)


def validated(raw):
    return validate(raw, SCHEMA)


def changed(raw, path, value):
    """A copy of `raw` with `value` at the dotted `path`."""
    raw = copy.deepcopy(raw)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = raw
    for part in parents:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return raw


# ------------------------------------------------------------------ what is refused

# Where, = the value in YAML; under it the whole sentence (up to "..." if the data set's module has its own to say).
REFUSED = """
# keys
serach = {}
    serach is not a known key: did you mean search?
search/lr_msk = 0.1
    search.lr_msk is not a known key: did you mean lr_mask?
indirect_reus = []
    indirect_reus is not a known key: did you mean indirect_reuse?
cores = 4
    cores is not a known key: known are seed, device, precision, cpu_precision, engines, array_gb, stack, datasets,
    models, training, search, baselines, recovery, timing, direct_reuse, transfer, attack, indirect_reuse.
lr_mask = 0.1
    lr_mask is not a known key: it belongs in search.
together = 8
    together is not a known key: it is called stack now.
datasets/pets/path = pets
    datasets.pets.path is not a known key: known are kind, root, download, size, classes, groups, test_share,
    split_seed, augmentation.
models/mine/weight = mine.pt
    models.mine.weight is not a known key: did you mean weights?
direct_reuse/0/target = [cat]
    direct_reuse[0].target is not a known key: did you mean targets?
direct_reuse/0/alpha = 2.0
    direct_reuse[0].alpha is not a known key: it belongs in direct_reuse[0].search.
direct_reuse/0/overrides = {cat: {alfa: 1.0}}
    direct_reuse[0].overrides.cat.alfa is not a known key: did you mean alpha?
models/new = {architecture: resnet20, dataset: digits}
    models.new.weights is missing: docs/configuration.md says what it may be.
search = {yes: 1}
    search has the key true, which is not text: put quotes around what was meant.
datasets/digits/root = digits
    datasets.digits.root is not for data of kind digits: leave it out.
datasets/cifar10/size = 32
    datasets.cifar10.size is not for data of kind cifar10: leave it out.
datasets/pets/groups = a.csv
    datasets.pets.groups is not for data of kind imagefolder: leave it out.

# values
seed = -1
    seed is -1, but must be at least 0 and at most 4294967295.
device = gpu
    device is 'gpu', but must be auto, cpu, cuda or mps.
precision = bf16
    precision is 'bf16', but must be bfloat16, tf32 or float32 (did you mean bfloat16?).
engines = [deepspars]
    engines[0] is 'deepspars', but must be seam, onnxruntime, onnxruntime-int8, openvino, openvino-int8 or deepsparse
    (did you mean deepsparse?).
engines = deepsparse
    engines is 'deepsparse', but must be auto or a list: write [deepsparse].
timing/batch_size = [16, 0]
    timing.batch_size[1] is 0, but must be at least 1.
timing/batch_size = []
    timing.batch_size has 0 values, but needs at least 1.
timing/threads = [all, two]
    timing.threads[1] is 'two', but must be all or a whole number.
timing/threads = 0
    timing.threads is 0, but must be at least 1.
timing/statistic = least
    timing.statistic is 'least', but must be mean or median.
search/lr_mask = 1e-3
    search.lr_mask is '1e-3', but must be a number: write 0.001 in a config file (numbers in quotes or like 1e-3
    are text to YAML, and so are nested ones in --config).
search/epochs = '30'
    search.epochs is '30', but must be a whole number: write 30 in a config file (numbers in quotes or like
    1e-3 are text to YAML, and so are nested ones in --config).
search/epochs = 30.0
    search.epochs is 30.0, but must be a whole number: write 30.
search/epochs = 2.5
    search.epochs is 2.5, but must be a whole number.
search/epochs = true
    search.epochs is true, but must be a whole number.
search/epochs = 0
    search.epochs is 0, but must be at least 1.
search/patience = 0
    search.patience is 0, but must be at least 1.
search/batch_size = 0
    search.batch_size is 0, but must be at least 2.
search/evaluate_every = 0
    search.evaluate_every is 0, but must be at least 1.
search/head_every = 1
    search.head_every is 1, but must be at least 2.
search/lr_head = 0
    search.lr_head is 0, but must be more than 0.
search/lr_mask = fast
    search.lr_mask is 'fast', but must be a number.
search/alpha = .nan
    search.alpha is nan, but must be a finite number.
direct_reuse/0/search = {alpha: -1}
    direct_reuse[0].search.alpha is -1, but must be at least 0.
search/holdout = 0.6
    search.holdout is 0.6, but must be more than 0 and at most 0.5.
search/selection = train
    search.selection is 'train', but must be holdout, last or test.
search = null
    search is empty, but must be keys with values: give it a value or leave it out.
training/lr = -0.1
    training.lr is -0.1, but must be more than 0.
training/momentum = 1
    training.momentum is 1, but must be more than 0 and less than 1.
timing/warmup = -1
    timing.warmup is -1, but must be at least 0.
direct_reuse/1/timing = {iterations: 0}
    direct_reuse[1].timing.iterations is 0, but must be at least 1.

# data sets
datasets/digits/kind = digit
    datasets.digits.kind is 'digit', but must be digits, cifar10, cifar100, imagefolder, imagenet, mit67, cub200,
    flower102, dog120 or action40 (did you mean digits?).
datasets/my pets = {kind: digits}
    datasets has the name 'my pets', but a name can only have letters, digits, '_', '-' and '.', none of the
    last two first, and at most 100 of them.
datasets/new = {kind: imagefolder}
    datasets.new.root is missing: docs/configuration.md says what it may be.
datasets/pets/root = null
    datasets.pets.root is empty, but must be text: give it a value or leave it out.
datasets/pets/root = dogs
    datasets.pets.root is 'dogs', but there is no such folder.
datasets/pets/root = pets.csv
    datasets.pets.root is 'pets.csv', but there is no such file.
datasets/cifar10/root = pets
    datasets.cifar10.root: ...
datasets/imagenet/groups = a.csv
    datasets.imagenet.groups is 'a.csv', but there is no such file.
datasets/pets/size = 4
    datasets.pets.size is 4, but must be at least 8 and at most 1024.
datasets/pets/classes = [cat, rabit]
    datasets.pets.classes names 'rabit', which is not a class of imagefolder: did you mean rabbit?
datasets/digits/classes = [1, 2, '1']
    datasets.digits.classes names '1' twice: once is enough.
datasets/digits/classes = [1]
    datasets.digits.classes has 1 value, but needs at least 2.
datasets/digits/augmentation = [crop, mirror]
    datasets.digits.augmentation[1] is 'mirror', but must be crop, flip or resized-crop.

datasets/pets/download = true
    datasets.pets.download is not for data of kind imagefolder: leave it out.
datasets/digits/download = false
    datasets.digits.download is not for data of kind digits: leave it out.
datasets/birds/download = yes please
    datasets.birds.download is 'yes please', but must be true or false.
datasets/birds/download = 'true'
    datasets.birds.download is 'true', but must be true or false: write true, without quotes.
datasets/birds/download = 1
    datasets.birds.download is 1, but must be true or false.
datasets/birds = {kind: cub200, download: true, root: pets}
    datasets.birds.download is true, but root is given, too: drop one of the two.
datasets/birds/root = pets
    datasets.birds.root: ...
datasets/birds/root = nowhere
    datasets.birds.root is 'nowhere', but there is no such folder.
datasets/birds/groups = a.csv
    datasets.birds.groups is not for data of kind cub200: leave it out.
datasets/birds/classes = [sparrow, duck]
    datasets.birds.classes names 'sparrow', which is not a class of cub200: ...
datasets/scenes = {kind: mit67, download: true}
    datasets.scenes.download: mit67 has no published checksum, ...
array_gb = -1
    array_gb is -1, but must be at least 0.
stack = 0
    stack is 0, but must be at least 1.

# models
models/mine/last_layer = 6
    models.mine.last_layer is 6, but must be text or null: put quotes around it.
models/mine/last_layr = fc
    models.mine.last_layr is not a known key: did you mean last_layer?
models/mine/dataset = pet
    models.mine.dataset names 'pet', which is not the name of a data set under datasets: did you mean pets?
models/mine/architecture = resnet21
    models.mine.architecture is 'resnet21', but must be resnet20, vgg16_bn, torchvision:NAME, timm:NAME or
    path/to/file.py:factory (did you mean resnet20?).
models/mine/architecture = torchvision:resnet49
    models.mine.architecture is 'torchvision:resnet49', but torchvision has no such model: did you mean
    resnet34?
models/mine/architecture = yours.py:build
    models.mine.architecture names the file yours.py, but there is no such file.
models/mine/architecture = my_models.py:biuld
    models.mine.architecture names the function biuld, but my_models.py has none of that name: did you mean
    build?
models/mine/architecture = my_models.py
    models.mine.architecture is 'my_models.py', but must name a function, too: write my_models.py:build, say.
models/mine/architecture = 'my_models.py:'
    models.mine.architecture is 'my_models.py:', but must name a function, too: write my_models.py:build, say.
models/mine/weights = 'braces{}.pt'
    models.mine.weights is 'braces{}.pt', but braces in a path are wildcards to Snakemake: rename it.
models/mine/classes = 'braces{}.txt'
    models.mine.classes is 'braces{}.txt', but braces in a path are wildcards to Snakemake: rename it.
models/mine/weights = ~nobody-of-that-name/mine.pt
    models.mine.weights is '~nobody-of-that-name/mine.pt', but there is no such file.
datasets/pets/classes = all
    datasets.pets.classes is 'all', but must be a list or null: leave it out for all.
models/mine/architecture = broken.py:build
    models.mine.architecture names the file broken.py, but it is not Python (invalid syntax (broken.py, line
    1)).
models/mine/weights = yours.pt
    models.mine.weights is 'yours.pt', but there is no such file.
models/mine/weights = IMAGENET1K_V1
    models.mine.weights is 'IMAGENET1K_V1', but must be train or a file that ends in .safetensors, .pt, .pth, .th,
    .ckpt, .bin, .pth.tar or .pt2.
models/mine/normalization = null
    models.mine.normalization is missing, but a weights file of your own needs it: give the mean and std that
    the model was trained with.
models/mine/normalization/std = [0.2, 0.0, 0.2]
    models.mine.normalization.std[1] is 0.0, but must be more than 0 and at most 1.
models/mine/normalization/mean = [123, 116, 103]
    models.mine.normalization.mean[0] is 123, but must be at least 0 and at most 1.
models/mine/normalization/mean = [0.5]
    models.mine.normalization.mean has 1 value, but needs exactly 3.
models/mine/training = {epochs: 5}
    models.mine.training is given, but weights is 'mine.pt', not train: drop one of the two.
models/digits-resnet20/weights = hub
    models.digits-resnet20.weights is 'hub', but the hub has no resnet20 for data of kind digits: it has
    resnet20 for cifar10, resnet20 for cifar100, vgg16_bn for cifar10, vgg16_bn for cifar100.
models/digits-resnet20/weights = trian
    models.digits-resnet20.weights is 'trian', but must be train, hub or a file that ends in .safetensors, .pt,
    .pth, .th, .ckpt, .bin, .pth.tar or .pt2 (did you mean train?).
models/resnet50/weights = IMAGENET1K_V3
    models.resnet50.weights is 'IMAGENET1K_V3', but must be train, a weights file or one of IMAGENET1K_V1,
    IMAGENET1K_V2, DEFAULT (did you mean IMAGENET1K_V2?).
models/resnet50/dataset = digits
    models.resnet50.weights is 'IMAGENET1K_V1', but these weights know ImageNet's 1000 classes and datasets.digits
    has 10: write train, or give a file of your own.
models/mine/classes = [cat, dog]
    models.mine.classes: The classes of models.mine know no class golden retriever, but cat, dog: rename the
    folder of its images, leave the class out of the data set, or correct the classes of the model.
models/mine/classes = names.txt
    models.mine.classes is 'names.txt', but must be a list of names, a file of names, weights (which bring them), or
    cifar10, cifar100 or imagenet.
models/digits-resnet20/classes = [a, b]
    models.digits-resnet20.classes is given, but weights is 'train', which learns the data set's classes: drop one.

# target problems
direct_reuse/0/model = resnet20-cifar1
    direct_reuse[0].model names 'resnet20-cifar1', which is not the name of a model under models: did you mean
    resnet20-cifar10?
direct_reuse/0/problem = multi-class
    direct_reuse[0].problem is 'multi-class', but must be binary, group, multiclass or multiclass_rest
    (did you mean multiclass?).
direct_reuse/0/targets = [Cat]
    direct_reuse[0].targets names 'Cat', which is not a class of the model's data set (cifar10): did you mean
    cat?
direct_reuse/0/targets = [house]
    direct_reuse[0].targets names 'house', which is not a class of the model's data set (cifar10): did you mean
    horse?
direct_reuse/0/targets = [7]
    direct_reuse[0].targets names '7', which is not a class of the model's data set (cifar10): known are
    airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.
direct_reuse/0/targets = [cat, cat]
    direct_reuse[0].targets names 'cat' twice: once is enough.
direct_reuse/0/targets = []
    direct_reuse[0].targets has 0 values, but needs at least 1.
direct_reuse/0/targets = [yes]
    direct_reuse[0].targets[0] is true, but must be text or a whole number: put quotes around words such as yes,
    no, on and off, which YAML reads as true and false.
direct_reuse/0/targets = al
    direct_reuse[0].targets is 'al', but must be all, superclasses, a list of names or groups by name (did you
    mean all?).
direct_reuse/0/targets = superclasses
    direct_reuse[0].targets is 'superclasses', but problem: binary takes all or a list of class names.
direct_reuse/0/targets = {pets: [cat, dog]}
    direct_reuse[0].targets is keys with values (pets), but problem: binary takes all or a list of class names.
direct_reuse/0/overrides = {shp: {alpha: 2.0}}
    direct_reuse[0].overrides names 'shp', which is not a target of this entry: did you mean ship?
direct_reuse/1/targets = all
    direct_reuse[1].targets is 'all', but problem: multiclass takes superclasses or groups by name, as in
    {pets: [cat, dog]}.
direct_reuse/1 = {model: mine, problem: group, targets: all}
    direct_reuse[1].targets is 'all', but problem: group takes superclasses or groups by name, as in
    {pets: [cat, dog]}.
direct_reuse/1 = {model: mine, problem: multiclass_rest, targets: {all: [cat, rabbit, golden retriever]}}
    direct_reuse[1].targets.all has all classes of the data set, but problem: multiclass_rest needs a rest: take a
    class out, or set problem: multiclass.
direct_reuse/1 = {model: mine, problem: group, targets: {rest: [cat, rabbit]}}
    direct_reuse[1].targets names 'rest', the name of the output for all other classes: give the class or group
    another name.
search/budget = {weights: 0.1, batch_size: 1}
    search.budget.batch_size is 1, but must be at least 2.
direct_reuse/1/targets = {one: [otter]}
    direct_reuse[1].targets.one has 1 value, but needs at least 2.
direct_reuse/1/targets = {one: [otter, seel]}
    direct_reuse[1].targets.one names 'seel', which is not a class of the model's data set (cifar100): did you
    mean seal?
direct_reuse/1/targets = {one: [otter, otter]}
    direct_reuse[1].targets.one names 'otter' twice: once is enough.
direct_reuse/1/targets = {a b: [otter, seal]}
    direct_reuse[1].targets has the name 'a b', but a name can only have letters, digits, '_', '-' and '.',
    none of the last two first, and at most 100 of them.
direct_reuse/1/targets = [fishes]
    direct_reuse[1].targets names 'fishes', which is not a superclass of cifar100: did you mean fish?
direct_reuse/1 = {model: mine, problem: multiclass, targets: superclasses}
    direct_reuse[1].targets: imagefolder has no superclasses of its own: ...
direct_reuse/1 = {model: resnet20-cifar10, problem: binary, targets: all}
    direct_reuse[1].targets names 'cat', but direct_reuse[0].targets has 'cat' for the same model and problem,
    with results in the same folder (cat): leave one out or rename it.

# students
indirect_reuse/0 = {model: resnet50}
    indirect_reuse[0].datasets is missing: docs/configuration.md says what it may be.
indirect_reuse/0/model = resnet5
    indirect_reuse[0].model names 'resnet5', which is not the name of a model under models: did you mean resnet50?
indirect_reuse/0/datasets = [pets, digit]
    indirect_reuse[0].datasets names 'digit', which is not the name of a data set under datasets: did you mean digits?
indirect_reuse/0/datasets = [pets, pets]
    indirect_reuse[0].datasets names 'pets' twice: once is enough.
indirect_reuse/0/datasets = pets
    indirect_reuse[0].datasets is 'pets', but must be a list: write [pets].
indirect_reuse/0/datasets = []
    indirect_reuse[0].datasets has 0 values, but needs at least 1.
indirect_reuse/1 = {model: resnet50, datasets: [birds, digits]}
    indirect_reuse[1].datasets names 'digits', but indirect_reuse[0].datasets names it for the same model: leave one
    out.
indirect_reuse/0/students = [seem]
    indirect_reuse[0].students[0] is 'seem', but must be standard, retrain, remos, seam, magnitude or random (did you
    mean seam?).
indirect_reuse/0/students = []
    indirect_reuse[0].students has 0 values, but needs at least 1.
indirect_reuse/0/thresholds = [60]
    indirect_reuse[0].thresholds[0] is 60, but must be more than 0 and less than 1.
indirect_reuse/0/thresholds = [0.6, 0.60]
    indirect_reuse[0].thresholds names 0.6 twice: once is enough.
indirect_reuse/0/thresholds = [0.6, 0.60001]
    indirect_reuse[0].thresholds[1] is 0.60001, but may have three decimals at most.
indirect_reuse/0/compare_at = [0.5, 0.6]
    indirect_reuse[0].compare_at names 0.5, but must be among thresholds: [0.6, 0.4].
indirect_reuse/0/compare_at = []
    indirect_reuse[0].compare_at has 0 values, but needs at least 1.
indirect_reuse/0/alpha = 1.0
    indirect_reuse[0].alpha is not a known key: known are model, datasets, students, thresholds, compare_at, transfer,
    overrides, attack.
indirect_reuse/0/holdout = 0.2
    indirect_reuse[0].holdout is not a known key: it belongs in indirect_reuse[0].transfer.
indirect_reuse/0/transfer = {finetune: {lr_lst: 0.1}}
    indirect_reuse[0].transfer.finetune.lr_lst is not a known key: did you mean lr_last?
indirect_reuse/0/overrides = {digit: {batch_size: 8}}
    indirect_reuse[0].overrides names 'digit', which is not a data set of this entry: did you mean digits?
indirect_reuse/0/overrides = {pets: {standard: {keep_zeros: true}}}
    indirect_reuse[0].overrides.pets.standard.keep_zeros is not a known key: known are epochs, patience, lr, lr_last,
    momentum, weight_decay.
indirect_reuse/0/attack = {clip: [1, -1]}
    indirect_reuse[0].attack.clip is the list [1.0, -1.0], but its first value must be less than its second.
transfer/batch_size = 1
    transfer.batch_size is 1, but must be at least 2.
transfer/holdout = 0
    transfer.holdout is 0, but must be more than 0 and at most 0.5.
transfer/selection = train
    transfer.selection is 'train', but must be holdout or test.
transfer/search = {alpha: -1}
    transfer.search.alpha is -1, but must be at least 0.
transfer/search = {lr_mask: 0}
    transfer.search.lr_mask is 0, but must be more than 0.
transfer/head = {patience: 0}
    transfer.head.patience is 0, but must be at least 1.
transfer/retrain = {momentum: 1}
    transfer.retrain.momentum is 1, but must be at least 0 and less than 1.
transfer/finetune = {weight_decay: 1e-4}
    transfer.finetune.weight_decay is '1e-4', but must be a number: write 0.0001 in a config file (numbers in quotes
    or like 1e-3 are text to YAML, and so are nested ones in --config).
transfer/finetune = {keep_zeros: 1}
    transfer.finetune.keep_zeros is 1, but must be true or false.
transfer/finetun = {}
    transfer.finetun is not a known key: did you mean finetune?
attack/eps = 0
    attack.eps is 0, but must be more than 0.
attack/steps = 0
    attack.steps is 0, but must be at least 1.
attack/clip = [0]
    attack.clip has 1 value, but needs exactly 2.
attack/clip = [2.2, 2.2]
    attack.clip is the list [2.2, 2.2], but its first value must be less than its second.
direct_reuse/0/search = {budget: {weights: 0.1, macs: 0.2}}
  direct_reuse[0].search.budget: A budget gives one of weights, macs, latency, latency_ms; this one gives weights, macs.
direct_reuse/0/search = {budget: {epochs: 20}}
  direct_reuse[0].search.budget: A budget gives one of weights, macs, latency, latency_ms; this one gives none.
search/budget = {weights: 0.1, batch: 4}
  search.budget has batch, which only a budget in latency or latency_ms takes: remove it.
search/budget = {latency_ms: 2, engine: onnxruntime}
  direct_reuse[0].search.budget is for onnxruntime, which gains nothing from weights that are zero: ...
search/budget = {weights: 1.5}
  search.budget.weights is 1.5, but must be ...
"""


def refused():
    cases = []
    for line in REFUSED.splitlines():
        if line.startswith(" "):
            cases[-1][2] = f"{cases[-1][2]} {line.strip()}".strip()
        elif line and not line.startswith("#"):
            cases.append([*line.split(" = ", 1), ""])
    return [pytest.param(*case, id=" = ".join(case[:2])) for case in cases]


@pytest.mark.parametrize(("path", "text", "expected"), refused())
def test_mistake_ends_in_one_sentence_that_names_the_key(small, path, text, expected):
    raw = changed(small, path, yaml.safe_load(text))
    with pytest.raises(UserError) as caught:
        validated(raw)
    found = str(caught.value)
    assert found.startswith(expected.removesuffix("...")) if expected.endswith("...") else found == expected
    assert "\n" not in found


def test_right_configuration_is_accepted(small):
    assert validated(small)["models"]["mine"]["weights"] == "mine.pt"


def test_empty_configuration_is_refused():
    with pytest.raises(UserError, match=r"^datasets is missing: "):
        validated({})


def test_subset_without_a_whole_superclass_is_refused(small):
    raw = changed(small, "datasets/cifar100/classes", ["otter", "seal", "rose"])
    raw["direct_reuse"][1]["targets"] = "superclasses"
    with pytest.raises(UserError, match="no superclass lies wholly within the data set's classes"):
        validated(raw)


def test_vgg16_takes_images_of_32_pixels_only(small):
    raw = changed(small, "models/large", {"architecture": "vgg16_bn", "dataset": "pets", "weights": "train"})
    validated(raw)
    with pytest.raises(UserError, match=r"models.large.architecture is 'vgg16_bn', .*datasets.pets.size is 64"):
        validated(changed(raw, "datasets/pets/size", 64))


def test_students_of_vgg16_are_for_images_of_32_pixels_only(small):
    small["models"]["vgg16"] = {"architecture": "vgg16_bn", "dataset": "cifar10", "weights": "hub"}
    small["indirect_reuse"] = [{"model": "vgg16", "datasets": ["digits", "pets"]}]
    validated(small)
    with pytest.raises(UserError, match=r"\[0\].model is 'vgg16', of the architecture 'vgg16_bn', .*pets.size is 64"):
        validated(changed(small, "datasets/pets/size", 64))


def test_classes_whose_folder_names_meet_are_refused(small, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "golden_retriever").mkdir()
    small["direct_reuse"] = [{"model": "mine", "problem": "binary", "targets": "all"}]
    with pytest.raises(UserError, match=r"names 'golden_retriever', but .* has 'golden retriever' .*rename it"):
        validated(small)


def test_a_class_in_another_script_is_a_target(small, tmp_path):
    for split in ("train", "test"):
        (tmp_path / "pets" / split / "猫").mkdir()
    small["direct_reuse"] = [{"model": "mine", "problem": "multiclass", "targets": {"felines": ["cat", "猫"]}}]
    validated(small)
    small["direct_reuse"] = [{"model": "mine", "problem": "binary", "targets": ["猫", "cat"]}]
    problems = target_problems(validated(small))
    assert [problem.classes for problem in problems] == [["猫"], ["cat"]]
    assert [problem.target for problem in problems] == [folder_name("猫"), "cat"]


# ------------------------------------------------------------------ what is filled in


def test_defaults_are_filled_in_at_every_level(small):
    config = validated(small)
    assert (config["seed"], config["device"], config["precision"]) == (0, "auto", "bfloat16")
    assert config["engines"] == "auto"
    assert config["search"] == {**SEARCH, **UNUSED}
    assert config["training"] == {
        "epochs": 30, "batch_size": 128, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005, "label_smoothing": 0.0,
    }  # fmt: skip
    assert config["timing"] == {
        "batch_size": 16, "threads": "all", "warmup": 20, "iterations": 100, "runs": 2, "statistic": "mean",
    }  # fmt: skip
    assert config["datasets"]["digits"] == {"kind": "digits", "size": 32, "classes": None, "augmentation": None}
    assert config["datasets"]["cifar10"] == {"kind": "cifar10", "root": None, "classes": None, "augmentation": None}
    assert [config["datasets"][name]["size"] for name in ("pets", "imagenet")] == [32, 224]
    assert config["datasets"]["birds"] == {
        "kind": "cub200", "root": None, "download": False, "size": 224, "classes": None, "augmentation": None,
    }  # fmt: skip
    assert (config["models"]["resnet50"]["normalization"], config["models"]["resnet50"]["last_layer"]) == (None, None)
    assert (config["transfer"], config["attack"], config["array_gb"]) == (TRANSFER, ATTACK, 20.0)
    assert config["indirect_reuse"][1] == {
        "model": "digits-resnet20", "datasets": ["pets"], "students": ["seam", "standard"], "thresholds": [0.6],
        "compare_at": None,
    }  # fmt: skip


def test_a_block_of_transfer_that_is_given_in_part_is_filled_in(small):
    small["transfer"] = {"holdout": 0.2, "finetune": {"epochs": 7, "lr": 1}}
    config = validated(small)
    finetune = {**TRANSFER["finetune"], "epochs": 7, "lr": 1.0}
    assert config["transfer"] == {**TRANSFER, "holdout": 0.2, "finetune": finetune}
    assert repr(config["transfer"]["finetune"]["lr"]) == "1.0"


def test_given_values_stay_and_the_rest_is_filled_in(small):
    config = validated(changed(small, "search", {"alpha": 2.0, "epochs": 7}))
    assert config["search"] == {**SEARCH, "alpha": 2.0, "epochs": 7, **UNUSED}
    assert "search" not in config["direct_reuse"][0]


def test_a_budget_brings_its_own_settings_and_leaves_the_others_as_they_were(small):
    small["direct_reuse"][0]["search"] = {"budget": {"weights": 0.1}, "lr_mask": 0.12}
    before, after = target_problems(validated(small)), target_problems(validated(changed(small, "search", {})))
    assert repr(before) == repr(after)
    first = next(problem for problem in before if "budget" in problem.settings)
    assert (
        first.settings["budget"] == {"distillation": 0.7, "lr_bias": 0.01, "weights": 0.1}
        and first.settings["epochs"] == 30
    )
    assert first.settings["lr_mask"] != 0.12 and "penalty" not in first.settings
    small["direct_reuse"][0]["search"] = {}
    assert all("budget" not in problem.settings for problem in target_problems(validated(small)))
    small["search"] = {"budget": {"macs": 10, "epochs": 12}}
    assert target_problems(validated(small))[0].settings["budget"] == {
        "distillation": 0.7,
        "lr_bias": 0.01,
        "macs": 10.0,
    }


def test_channels_bring_their_own_settings_and_leave_the_others_as_they_were(small):
    before = target_problems(validated(small))
    small["search"] = {"channels": {"multiple": 4}}  # without granularity: channel, they are no setting of a search
    assert repr(before) == repr(target_problems(validated(small)))
    small["search"] |= {"granularity": "channel", "budget": {"macs": 0.25}}
    settings = target_problems(validated(small))[0].settings
    assert settings["granularity"] == "channel" and settings["schedule"] == "budget"
    assert settings["channels"] == {
        "branches": True, "distillation": 1.0, "lr": 0.001, "multiple": 4, "temperature": 2.0, "train_weights": True,
    }  # fmt: skip
    assert all(not problem.recovery for problem in before)
    small["direct_reuse"][0]["recovery"] = {"epochs": 5}
    assert target_problems(validated(small))[0].recovery["epochs"] == 5


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ({"granularity": "channel"}, "granularity: channel and no budget"),
        ({"budget": {"latency_ms": 2.0, "engine": "openvino"}}, "is for openvino, which gains nothing"),
        ({"granularity": "channel", "budget": {"macs": 0.3}, "channels": {"multiple": 0}}, "channels.multiple is 0"),
        ({"granularity": "filter"}, "granularity"),
        ({"granularity": "channel", "budget": {"macs": 0.3}, "penalty": "macs"}, "on which penalty has no effect"),
        ({"granularity": "channel", "budget": {"macs": 0.3, "lr_mask": 1}}, "on which budget.lr_mask has no effect"),
    ],
)
def test_a_search_of_channels_that_cannot_be_done_is_one_sentence(small, search, sentence):
    with pytest.raises(UserError, match=sentence):
        validated(changed(small, "search", search))


def test_the_input_is_left_as_it_was_and_a_second_pass_changes_nothing(small):
    before = copy.deepcopy(small)
    config = validated(small)
    assert small == before
    assert validated(config) == config
    config["search"]["alpha"] = 9.0
    assert validated(small)["search"]["alpha"] == 1.0


def test_two_ways_of_writing_a_number_are_equal(small):
    whole = validated(changed(small, "direct_reuse/0/search", {"alpha": 1, "lr_mask": 1}))
    assert repr(whole["direct_reuse"][0]["search"]) == "{'alpha': 1.0, 'lr_mask': 1.0}"
    assert repr(validated(changed(small, "search", {"epochs": 5}))["search"]["epochs"]) == "5"


def test_whole_numbers_as_class_names_are_read_as_text(small):
    small["datasets"]["digits"]["classes"] = [1, 3, 8, "9"]
    small["direct_reuse"] = [
        {"model": "digits-resnet20", "problem": "binary", "targets": [3], "overrides": {3: {"alpha": 4}}},
        {"model": "digits-resnet20", "problem": "multiclass", "targets": {"odd": [1, 3, 9]}},
    ]
    first, second = target_problems(validated(small))
    assert (first.target, first.classes, first.settings["alpha"]) == ("3", ["3"], 4.0)
    assert (second.target, second.classes) == ("odd", ["1", "3", "9"])


def test_home_folder_is_expanded(small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small["datasets"]["pets"]["root"] = "~/pets"
    small["models"]["mine"] |= {"weights": "~/mine.pt", "architecture": "~/my_models.py:build"}
    config = validated(small)
    assert config["datasets"]["pets"]["root"] == str(tmp_path / "pets")
    assert model_files(config, "mine") == [str(tmp_path / "mine.pt"), str(tmp_path / "my_models.py")]


def test_torchvision_names_and_weights_are_those_of_torchvision():
    models = pytest.importorskip("torchvision").models
    names = models.list_models(module=models)
    assert torchvision_weights() == {name: list(models.get_model_weights(name).__members__) for name in names}


def test_weights_for_1000_classes_fit_a_folder_with_as_many(small, tmp_path):
    for split in ("train", "test"):
        for number in range(1000):
            (tmp_path / "many" / split / f"n{number:08}").mkdir(parents=True)
    small["datasets"]["many"] = {"kind": "imagefolder", "root": "many", "classes": ["n00000001", "n00000002"]}
    small["models"]["resnet50"]["dataset"] = "many"
    assert validated(small)["models"]["resnet50"]["weights"] == "IMAGENET1K_V1"


# ------------------------------------------------------------------ problems and settings


def test_settings_come_from_the_override_then_the_entry_then_the_defaults(small):
    small["search"] = {"alpha": 2.0, "epochs": 100, "patience": 5}
    small["direct_reuse"][0] |= {
        "search": {"alpha": 3.0, "lr_mask": 0.2},
        "overrides": {"ship": {"alpha": 4.0, "batch_size": 32}},
        "timing": {"warmup": 1},
    }
    cat, ship, water = target_problems(validated(small))
    expected = {**SEARCH, "alpha": 3.0, "lr_mask": 0.2, "epochs": 100, "patience": 5}
    assert cat.settings == expected
    assert ship.settings == {**expected, "alpha": 4.0, "batch_size": 32}
    assert water.settings == {**SEARCH, "alpha": 2.0, "epochs": 100, "patience": 5}
    assert list(ship.settings) == sorted(ship.settings) and list(cat.timing) == sorted(cat.timing)
    assert cat.timing == {
        "batch_size": [16], "iterations": 100, "runs": 2, "statistic": "mean", "threads": ["all"], "warmup": 1,
    }  # fmt: skip
    assert water.timing["warmup"] == 20


def test_baselines_of_an_entry_come_before_those_of_all(small):
    assert all(problem.baselines == () for problem in target_problems(validated(small)))
    small["baselines"] = ["head", "snip-overall"]
    small["direct_reuse"][0]["baselines"] = ["scratch"]
    problems = target_problems(validated(small))
    assert [p.baselines for p in problems[:1]] == [("scratch",)]
    assert {p.baselines for p in problems} <= {("scratch",), ("head", "snip-overall")}
    small["baselines"] = ["heads"]
    with pytest.raises(UserError, match=r"baselines\[0\] is 'heads'.*did you mean head"):
        validated(small)


def test_recovered_baselines_need_a_recovery_of_single_weights(small):
    small["direct_reuse"] = small["direct_reuse"][:1]
    small["baselines"] = ["magnitude", "magnitude-recovered"]
    sentence = r"direct_reuse\[0\] has the baseline magnitude-recovered, but its models have no recovery .*epochs: 20"
    with pytest.raises(UserError, match=sentence):
        validated(small)
    small["recovery"] = {"epochs": 3}
    assert target_problems(validated(small))[0].baselines == ("magnitude", "magnitude-recovered")
    entry = small["direct_reuse"][0]
    with pytest.raises(UserError, match=sentence):
        validated(small | {"direct_reuse": [entry | {"recovery": {"epochs": 0}}]})
    validated(small | {"direct_reuse": [entry | {"recovery": {"epochs": 0}, "baselines": ["magnitude"]}]})
    channels = {"granularity": "channel", "budget": {"macs": 0.5}}
    with pytest.raises(
        UserError, match="granularity: channel, with which the baseline head-recovered cannot be compared"
    ):
        validated(small | {"direct_reuse": [entry | {"search": channels, "baselines": ["head-recovered"]}]})
    for name in ("scratch-recovered", "finetuned-recovered"):
        with pytest.raises(UserError, match=r"baselines\[0\] is '" + name):
            validated(small | {"baselines": [name]})


def test_targets_of_each_form(small):
    small["direct_reuse"] = [
        {"model": "mine", "problem": "binary", "targets": "all"},
        {"model": "mine", "problem": "multiclass", "targets": {"two": ["rabbit", "cat"]}},
        {"model": "resnet20-cifar100", "problem": "multiclass", "targets": ["fish", "people"]},
        {"model": "resnet20-cifar10", "problem": "binary", "targets": ["cat"]},
        {"model": "resnet20-cifar10", "problem": "binary", "targets": ["ship"]},
        {"model": "mine", "problem": "group", "targets": {"two": ["rabbit", "cat"]}},
        {"model": "mine", "problem": "multiclass_rest", "targets": {"two": ["rabbit", "cat"]}},
    ]
    problems = target_problems(validated(small))
    assert [p.outputs for p in problems] == [2, 2, 2, 2, 5, 5, 2, 2, 2, 3]
    found = [(p.model, p.dataset, p.problem, p.target, p.classes) for p in target_problems(validated(small))]
    assert found == [
        ("mine", "pets", "binary", "cat", ["cat"]),
        ("mine", "pets", "binary", "golden_retriever", ["golden retriever"]),
        ("mine", "pets", "binary", "rabbit", ["rabbit"]),
        ("mine", "pets", "multiclass", "two", ["rabbit", "cat"]),
        ("resnet20-cifar100", "cifar100", "multiclass", "fish", ["aquarium_fish", "flatfish", "ray", "shark", "trout"]),
        ("resnet20-cifar100", "cifar100", "multiclass", "people", ["baby", "boy", "girl", "man", "woman"]),
        ("resnet20-cifar10", "cifar10", "binary", "cat", ["cat"]),
        ("resnet20-cifar10", "cifar10", "binary", "ship", ["ship"]),
        ("mine", "pets", "group", "two", ["rabbit", "cat"]),
        ("mine", "pets", "multiclass_rest", "two", ["rabbit", "cat"]),
    ]


def test_an_override_names_the_class_not_its_folder(small):
    entry = {"model": "mine", "problem": "binary", "targets": "all", "overrides": {"golden retriever": {"alpha": 7.0}}}
    small["direct_reuse"] = [entry]
    assert [p.settings["alpha"] for p in target_problems(validated(small))] == [1.0, 7.0, 1.0]


def test_subset_of_classes_limits_targets_and_superclasses(small):
    fish = ["trout", "shark", "ray", "flatfish", "aquarium_fish"]
    small["datasets"]["cifar100"]["classes"] = [*fish, "rose"]
    small["direct_reuse"] = [
        {"model": "resnet20-cifar100", "problem": "binary", "targets": "all"},
        {"model": "resnet20-cifar100", "problem": "multiclass", "targets": "superclasses"},
    ]
    found = target_problems(validated(small))
    assert [p.target for p in found] == [*fish, "rose", "fish"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cat", "cat"), ("aquarium_fish", "aquarium_fish"), ("large_man-made_outdoor_things",) * 2, ("0", "0"),
        ("golden retriever", "golden_retriever"), ("crème brûlée (hot)", "creme_brulee_hot"),
        ("../x", "x"),
        (".hidden", "hidden"), ("-1", "1"), ("a/b", "a_b"), ("_x", "_x"),
        ("猫", "class-a810bf84"), ("..", "class-5ec1f7e7"),
        (100 * "a" + "b", 50 * "a" + "-d89d25f6"), ("x" + 20 * "ab", "x" + 20 * "ab" + "-43be9a8b"),
    ],
)  # fmt: skip
def test_folder_names(name, folder):
    assert folder_name(name) == folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("search: {epochs: 3}\nseed: 1\nsearch: {alpha: 2.0}\n", "has search twice (lines 1 and 3)"),
        ("direct_reuse:\n- {model: a}\n- model: b\n  model: c\n", "has direct_reuse[1].model twice (lines 3 and 4)"),
        ("search: {epochs: 3}\ntransfer: {search: {epochs: 3}}\n", None),
        ("a: &a {x: 1}\nb: &b {y: 1}\nc: {<<: *a, <<: *b}\n", None),
        ('{\n\t"seed": 1\n}\n', None),  # JSON, which is not always YAML
        ("", None),
    ],
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    if said is None:
        require_unique_keys(path)
        return
    with pytest.raises(UserError) as caught:
        require_unique_keys(path)
    assert str(caught.value) == f"{path} {said}, and only the last counts: join them."


def test_what_determines_a_source_model(small):
    small["training"] = {"lr": 0.2}
    small["models"]["digits-resnet20"]["training"] = {"epochs": 8}
    config = validated(small)
    assert model_settings(config, "digits-resnet20") == {
        "architecture": "resnet20",
        "dataset": "digits",
        "normalization": None,
        "seed": 0,
        "training": {
            "batch_size": 128, "epochs": 8, "label_smoothing": 0.0, "lr": 0.2, "momentum": 0.9, "weight_decay": 0.0005,
        },
        "weights": "train",
    }  # fmt: skip
    mine = model_settings(config, "mine")
    assert list(mine) == ["architecture", "dataset", "normalization", "weights"]  # no null of a key that came later
    named = model_settings(validated(changed(small, "models/mine/last_layer", "fc")), "mine")
    assert named == mine  # nothing but the students hangs on it
    assert model_files(config, "mine") == ["mine.pt", "my_models.py"]
    assert model_files(config, "resnet50") == []
    assert list(dataset_entry(config, "pets")) == ["augmentation", "classes", "kind", "root", "size"]


def test_what_lacks_its_data_is_left_out_with_one_line(small):
    assert left_out(validated(small)) == []  # nothing uses it
    small["direct_reuse"] += [
        {"model": "resnet50", "problem": "multiclass", "targets": "superclasses"},
        {"model": "resnet50", "problem": "binary", "targets": ["n01440764"], "overrides": {"n01440764": {"alpha": 2}}},
    ]
    config = validated(small)
    assert [p.model for p in target_problems(config)] == ["resnet20-cifar10"] * 2 + ["resnet20-cifar100"]
    assert left_out(config) == [
        "datasets.imagenet: its root is not given in the config, so what needs it is left out "
        "(resnet50 multiclass, resnet50 binary)."
    ]


def test_students_come_in_the_order_of_the_config_with_their_thresholds(small):
    found = plan.students(validated(small))
    methods = ["standard", "retrain", "seam-0.4", "seam-0.6", "magnitude-0.6", "random-0.6"]
    assert [(s.model, s.dataset, s.method) for s in found] == [
        *(("resnet50", dataset, method) for dataset in ("pets", "digits") for method in methods),
        ("digits-resnet20", "pets", "seam-0.6"),
        ("digits-resnet20", "pets", "standard"),
    ]
    assert [s.threshold for s in found[:6]] == [None, None, 0.4, 0.6, 0.6, 0.6]
    assert {s.thresholds for s in found[:12]} == {(0.4, 0.6)} and found[-1].thresholds == (0.6,)
    assert [s.student for s in found[:6]] == ["standard", "retrain", "seam", "seam", "magnitude", "random"]


def test_magnitude_and_random_are_made_at_all_thresholds_unless_the_config_says_at_which(small):
    small["indirect_reuse"] = [{"model": "resnet50", "datasets": ["pets"], "students": ["random", "magnitude"]}]
    small["indirect_reuse"][0]["thresholds"] = [0.5, 0.625]
    found = plan.students(validated(small))
    assert [s.method for s in found] == ["random-0.5", "random-0.625", "magnitude-0.5", "magnitude-0.625"]


def test_settings_of_a_student_are_merged_within_the_blocks(small):
    small["transfer"] = {"batch_size": 32, "finetune": {"epochs": 100, "lr": 0.01, "patience": 5}}
    small["attack"] = {"steps": 10}
    small["indirect_reuse"][0] |= {
        "transfer": {"finetune": {"epochs": 50, "lr": 0.02}, "head": {"lr": 0.3}},
        "overrides": {"digits": {"batch_size": 8, "finetune": {"lr": 0.04}}},
        "attack": {"eps": 0.2, "clip": [-1, 1]},
    }
    by_name = {(s.model, s.dataset, s.method): s for s in plan.students(validated(small))}
    pets, digits = by_name["resnet50", "pets", "seam-0.6"], by_name["resnet50", "digits", "seam-0.6"]
    finetune = {**TRANSFER["finetune"], "epochs": 50, "lr": 0.02, "patience": 5}
    head = {**TRANSFER["head"], "lr": 0.3}
    assert pets.transfer == {**TRANSFER, "batch_size": 32, "head": head, "finetune": finetune}
    assert digits.transfer == {**pets.transfer, "batch_size": 8, "finetune": {**finetune, "lr": 0.04}}
    other = by_name["digits-resnet20", "pets", "standard"]
    assert other.transfer["finetune"] == {**TRANSFER["finetune"], "epochs": 100, "lr": 0.01, "patience": 5}
    assert pets.attack == digits.attack == {**ATTACK, "steps": 10, "eps": 0.2, "clip": [-1.0, 1.0]}
    assert other.attack == {**ATTACK, "steps": 10}
    for mapping in (pets.transfer, pets.attack, *(v for v in pets.transfer.values() if isinstance(v, dict))):
        assert list(mapping) == sorted(mapping)


def test_students_without_their_target_data_are_left_out_with_one_line(small):
    small["indirect_reuse"][0]["datasets"] = ["birds", "pets"]
    small["indirect_reuse"] += [{"model": "resnet20-cifar10", "datasets": ["birds"]}]
    config = validated(small)
    assert {(s.model, s.dataset) for s in plan.students(config)} == {("resnet50", "pets"), ("digits-resnet20", "pets")}
    (line,) = left_out(config)
    assert line.startswith("datasets.birds: its root is not given in the config, so what needs it is left out")
    assert line.endswith(" (resnet50 indirect, resnet20-cifar10 indirect).")
    config = validated(changed(small, "datasets/birds/download", True))
    assert left_out(config) == []
    assert ("resnet50", "birds") in {(s.model, s.dataset) for s in plan.students(config)}


def test_a_source_model_needs_its_images_only_where_it_is_trained_on_them(small):
    small["indirect_reuse"] = [{"model": "resnet50", "datasets": ["pets"], "students": ["standard"]}]
    assert len(plan.students(validated(small))) == 1
    config = validated(changed(small, "models/resnet50/weights", "train"))
    assert plan.students(config) == []
    (line,) = left_out(config)
    assert line.startswith("datasets.imagenet: ") and line.endswith(" (resnet50 indirect).")


def test_one_line_for_a_data_set_that_both_kinds_of_reuse_lack(small):
    small["direct_reuse"] += [{"model": "resnet50", "problem": "binary", "targets": ["n01440764"]}]
    small["indirect_reuse"] += [{"model": "mine", "datasets": ["imagenet"]}]
    (line,) = left_out(validated(small))
    assert line.endswith(" (resnet50 binary, mine indirect).")


def test_the_budget_for_arrays_belongs_to_large_images_alone(small):
    config = validated(changed(changed(small, "array_gb", 5), "datasets/pets/size", 127))
    assert dataset_entry(config, "birds")["array_gb"] == dataset_entry(config, "imagenet")["array_gb"] == 5.0
    for name in ("digits", "cifar10", "pets"):
        assert "array_gb" not in dataset_entry(config, name)
    large = dataset_entry(validated(changed(small, "datasets/pets/size", 128)), "pets")
    assert large["array_gb"] == 20.0 and list(large) == sorted(large)


def test_weights_of_imagenet_do_not_depend_on_where_its_images_lie(small, tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (tmp_path / "ilsvrc" / split / wnid).mkdir(parents=True)
    small["models"]["own"] = {**small["models"]["mine"], "dataset": "imagenet"}
    without, there = validated(small), validated(changed(small, "datasets/imagenet/root", "ilsvrc"))
    assert source_weights(without, "resnet50") == source_weights(there, "resnet50")
    assert model_settings(without, "resnet50") == model_settings(there, "resnet50")
    assert [len(names) for names in source_weights(there, "resnet50")["class_lists"]] == [1000]
    # A weights file of one's own has the classes of one's own folder.
    assert source_weights(there, "own")["class_lists"] == [["n01440764", "n01443537"]] * 2


def test_a_stack_is_searched_on_a_gpu_only(small):
    small["stack"] = 4
    for device in ("auto", "cuda", "mps"):
        assert validated(small | {"device": device})["stack"] == 4
    sentence = "stack is 4, but device is cpu, .*: set stack to 1, or name another device"
    with pytest.raises(UserError, match=sentence):
        validated(small | {"device": "cpu"})
    assert validated(small | {"device": "cpu", "stack": 1})["stack"] == 1


def test_a_stack_has_problems_that_one_pass_can_search(small):
    small["direct_reuse"] = [
        {"model": "resnet20-cifar10", "problem": "binary", "targets": ["cat", "dog", "frog", "ship", "bird"]},
        {"model": "resnet20-cifar100", "problem": "binary", "targets": ["otter"]},
        {"model": "resnet20-cifar10", "problem": "multiclass", "targets": {"pets": ["cat", "dog"]}},
        {
            "model": "resnet20-cifar100",
            "problem": "multiclass",
            "targets": {"sea": ["otter", "seal"], "air": ["bee", "beetle"], "three": ["bear", "bee", "beetle"]},
        },
    ]
    small["direct_reuse"][0]["overrides"] = {"dog": {"alpha": 2.0}}
    problems = target_problems(validated(small))

    def names(most):
        return [[problem.target for problem in stack] for stack in stacks(problems, most)]

    assert names(2) == [["cat", "frog"], ["ship", "bird"], ["dog"], ["otter"], ["pets"], ["sea", "air"], ["three"]]
    assert names(9)[:2] == [["cat", "frog", "ship", "bird"], ["dog"]]
    assert names(1) == [[name] for name in sum(names(9), [])]
    assert stacks([], 4) == []
    small["search"] = {"budget": {"weights": 0.1}}  # which cannot share a pass
    assert names(9) != [[name] for name in sum(names(9), [])]
    problems = target_problems(validated(small))
    assert names(9) == [[name] for name in sum(names(9), [])]


def test_what_a_source_models_weights_are_fetched_from(small):
    small["datasets"]["cifar10"]["classes"] = ["ship", "cat"]
    small["datasets"]["pets"]["classes"] = ["rabbit", "cat"]
    config = validated(small | {"direct_reuse": [], "indirect_reuse": []})
    hub = source_weights(config, "resnet20-cifar10")
    assert list(hub) == sorted(hub)
    (every,) = hub.pop("class_lists")  # the checkpoint knows all classes, also if the config names two of them
    assert len(every) == 10 and every[0] == "airplane"
    assert hub == {"architecture": "resnet20", "kind": "cifar10", "normalization": None, "weights": "hub"}
    own = source_weights(config, "mine")  # a file of one's own may know either
    assert own["class_lists"] == [["rabbit", "cat"], ["cat", "golden retriever", "rabbit"]]
    assert own["normalization"] == [[0.5] * 3, [0.2] * 3]


@pytest.fixture
def ilsvrc(small, tmp_path):
    for split in ("train", "val"):
        for wnid in ("n01", "n02", "n03"):
            (tmp_path / "ilsvrc" / split / wnid).mkdir(parents=True)
    (tmp_path / "groups.csv").write_text("wild dog,n01 n03\nsingle,n02\n")
    small["datasets"]["imagenet"] |= {"root": "ilsvrc", "groups": "groups.csv"}
    small["direct_reuse"] = [{"model": "resnet50", "problem": "multiclass", "targets": "superclasses"}]
    return small


def test_imagenet_with_a_root_and_groups_of_its_own(ilsvrc, tmp_path):
    (problem,) = target_problems(validated(ilsvrc))
    assert (problem.target, problem.classes) == ("wild_dog", ["n01", "n03"])
    assert left_out(validated(ilsvrc)) == []
    prepared = plan.dataset_entry(validated(ilsvrc), "imagenet")
    shutil.copy(tmp_path / "groups.csv", tmp_path / "others.csv")
    ilsvrc["datasets"]["imagenet"]["groups"] = "others.csv"  # groups change no prepared image
    assert plan.dataset_entry(validated(ilsvrc), "imagenet") == prepared


def test_mistake_in_a_file_of_groups_names_its_key(ilsvrc, tmp_path):
    (tmp_path / "groups.csv").write_text("wild dog,n01 n04\n")
    with pytest.raises(UserError, match=r"^datasets\.imagenet\.groups: .*n04"):
        validated(ilsvrc)


# ------------------------------------------------------------------ the files that come with the project


@pytest.fixture
def full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))


def test_config_yaml_is_the_published_evaluation(full):
    config = validated(full)
    problems = target_problems(config)
    assert sum(p.problem == "binary" for p in problems) == 220
    assert sum(p.problem == "multiclass" for p in problems) == 20
    assert len({(p.model, p.problem, p.target) for p in problems}) == 240
    first, *others = left_out(config)
    assert first.startswith("datasets.imagenet: ") and first.endswith(" (resnet50-imagenet multiclass).")
    assert [line.partition(":")[0] for line in others] == [f"datasets.{name}" for name in TARGETS]
    assert all(line.endswith(" (resnet18-imagenet indirect, resnet50-imagenet indirect).") for line in others)
    published = {
        ("vgg16-cifar10", "binary"): (0.01, 1.0, 20, 100),
        ("vgg16-cifar100", "binary"): (0.05, 1.5, 20, 100),
        ("resnet20-cifar10", "binary"): (0.05, 1.0, 20, 100),
        ("resnet20-cifar100", "binary"): (0.12, 1.5, 20, 100),
        ("resnet20-cifar100", "multiclass"): (0.10, 2.0, 100, 200),
    }
    for p in problems:
        lr_mask, alpha, warmup, iterations = published[p.model, p.problem]
        assert p.settings == {**SEARCH, "lr_mask": lr_mask, "alpha": alpha}
        assert p.timing == {
            "batch_size": [16], "iterations": iterations, "runs": 2, "statistic": "mean", "threads": ["all"],
            "warmup": warmup,
        }  # fmt: skip
    imagenet = config["direct_reuse"][-1]
    assert imagenet["model"] == "resnet50-imagenet"
    assert imagenet["search"] == {"lr_mask": 0.05, "alpha": 2.0}


def test_config_yaml_is_the_published_evaluation_of_indirect_reuse_once_the_data_are_there(full, monkeypatch):
    available = why_unavailable
    for module in (entries, plan):
        monkeypatch.setattr(
            module, "why_unavailable", lambda entry: available(entry) if entry["kind"] == "imagenet" else None
        )
    config = validated(full)
    assert len(left_out(config)) == 1  # for direct reuse: the weights need no image of ImageNet
    students = plan.students(config)
    assert list(dict.fromkeys((s.model, s.dataset) for s in students)) == [
        (model, name) for model in ("resnet18-imagenet", "resnet50-imagenet") for name in TARGETS
    ]
    small = [s.method for s in students if s.model == "resnet18-imagenet" and s.dataset == "mit67"]
    seam = [f"seam-0.{t}" for t in (3, 4, 5, 6, 7)]
    assert small == ["standard", "retrain", *seam, "magnitude-0.6", "random-0.6"]
    large = [s.method for s in students if s.model == "resnet50-imagenet" and s.dataset == "dog120"]
    assert large == ["standard", "retrain", "seam-0.6", "magnitude-0.6", "random-0.6"]
    assert len(students) == 5 * 9 + 5 * 5
    for s in students:
        assert s.transfer == TRANSFER and s.attack == ATTACK


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_the_configs_of_the_tables_are_right(full, name, tmp_path):
    own = yaml.safe_load((ROOT / "configs" / name).read_text(encoding="utf-8"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")  # `make evidence` links this folder
    targets = {"other", "another"}
    for entry in own.get("direct_reuse", []):
        named = entry["targets"]
        if isinstance(named, list):
            targets |= set(named)
        elif isinstance(named, dict):
            targets |= set().union(*named.values())
    for dataset in own.get("datasets", {}).values():
        if dataset["kind"] == "imagefolder":  # the user's own files
            for split in ("train", "test"):
                for target in targets:
                    (tmp_path / dataset["root"] / split / target).mkdir(parents=True)
    for model in own.get("models", {}).values():
        if "data/" in model.get("weights", ""):
            (tmp_path / model["weights"]).touch()
    config = validated(merged(full, own))
    students = {"flowers-lite0.yaml": 8, "imagenet-indirect.yaml": 3 * 18}
    assert len(plan.students(config)) == students.get(name, 0)
    problems = target_problems(config)
    numbers = {"cifar10.yaml": 40, "cifar100.yaml": 440, "cifar100-ten.yaml": 10, "budget.yaml": 240}
    numbers |= {
        "budget_cifar100.yaml": 9,
        "engine_cifar100.yaml": 3,
        "recovery.yaml": 240,
        "timing.yaml": 240,
        "on-test.yaml": 240,
    }
    numbers |= {"channels-cifar10.yaml": 23, "channels-cifar100.yaml": 5, "published-resnet20.yaml": 2 * 102 + 20}
    assert len(problems) == numbers.get(name, 0)
    for problem in problems:
        compared = problem.settings["selection"] == "holdout" and name.startswith("cifar")
        by_channel = name == "channels-cifar10.yaml" and problem.model == "half" and problem.problem == "binary"
        assert bool(problem.baselines) is (compared or by_channel or name in ("budget.yaml", "recovery.yaml"))
        if compared:  # the published rates
            twin = {
                **SEARCH,
                "patience": 300,
                "lr_mask": problem.settings["lr_mask"],
                "alpha": problem.settings["alpha"],
            }
            assert problem.settings == twin


def test_config_yaml_restates_the_defaults(full):
    config = validated({key: full[key] for key in ("datasets", "models")})
    for key in set(config) - {"datasets", "models", "direct_reuse", "indirect_reuse"}:
        assert config[key] == validated(full)[key], key


def keys_of_the_schema():
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    found = set(schema["properties"])
    for rules in schema["$defs"].values():
        for key, own in rules.get("properties", {}).items():
            found |= {key, *own.get("properties", {})}
    return sorted(found)


@pytest.mark.parametrize("key", keys_of_the_schema())
def test_config_yaml_explains_every_key(key):
    """Each key stands in a comment, or on a line that has one or follows one."""
    lines = (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines()
    explained = any(
        re.search(rf"#.*\b{key}\b", line)
        or (re.match(rf"\s*{key}:", line) and ("#" in line or lines[number - 1].lstrip().startswith("#")))
        for number, line in enumerate(lines)
    )
    assert explained


def test_demo_merged_over_config_yaml_gives_the_demo_alone(full):
    update = pytest.importorskip("snakemake.utils").update_config
    update(full, yaml.safe_load((ROOT / "profiles" / "demo" / "workflow.yaml").read_text(encoding="utf-8")))
    config = validated(full)
    found = [(p.model, p.problem, p.target) for p in target_problems(config)]
    assert [(model, problem) for model, problem, _ in found] == (
        [("digits-resnet20", "binary")] * 3
        + [("digits-resnet20", "multiclass"), ("digits-resnet20", "binary"), ("digits-vgg16", "binary")]
    )
    assert [p.dataset for p in target_problems(config)] == ["digits"] * 5 + ["digits-high-32px"]
    assert [len(p.classes) for p in target_problems(config)] == [1, 1, 1, 4, 1, 1]
    granularities = [p.settings.get("granularity") for p in target_problems(config)]
    assert granularities == [None, None, None, None, "channel", None]
    assert left_out(config) == []
    models = {name: model_settings(config, name) for name in ("digits-resnet20", "digits-vgg16")}
    assert {name: (m["architecture"], m["weights"]) for name, m in models.items()} == {
        "digits-resnet20": ("resnet20", "train"),
        "digits-vgg16": ("vgg16_bn", "train"),
    }
    students = plan.students(config)
    assert {(s.model, s.dataset) for s in students} == {("digits-low-resnet20", "digits-high")}
    masked = [f"{student}-{t}" for student in ("seam", "magnitude", "random") for t in (0.4, 0.6)]
    assert [s.method for s in students] == ["standard", "retrain", *masked]
    low, high = (config["datasets"][name] for name in ("digits-low", "digits-high"))
    assert low["size"] == high["size"] and low["classes"] + high["classes"] == [str(digit) for digit in range(10)]
    assert model_settings(config, "digits-low-resnet20")["dataset"] == "digits-low"


# ------------------------------------------------------------------ the documentation


def test_documentation_agrees_with_the_schema():
    page = document(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == page, "run: python workflow/scripts/document_config.py docs/configuration.md"


@pytest.mark.parametrize("key", keys_of_the_schema())
def test_documentation_has_every_key(key):
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert re.search(rf"^(## {key}$|\| `(\w+\.)?{key}` \|)", page, re.MULTILINE)


def test_documentation_states_bounds_and_defaults():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert "| `holdout` | number, more than 0, at most 0.5 | `0.2` |" in page
    large = ", ".join(["imagenet", *TARGETS])
    assert f"| `size` | whole number, at least 8, at most 1024 | `32` (digits, imagefolder); `224` ({large}) |" in page
    assert f"| `download` | `true`, `false` | `false` | Only for {', '.join(TARGETS)}. " in page
    assert "| `finetune.lr` | number, more than 0 | `0.005` |" in page
    assert "| `head.lr` | number, more than 0 | `0.1` |" in page
    assert "| `retrain.momentum` | number, at least 0, less than 1 | `0.5` |" in page
    assert "| `finetune.keep_zeros` | `true`, `false` | `false` |" in page
    assert "| `thresholds` | list of numbers (more than 0, less than 1) | `[0.6]` |" in page
    assert "| `transfer` | keys of [transfer](#transfer) | not given |" in page
    assert "| `clip` | list of 2: number | `[-2.2, 2.2]` |" in page
    assert "| `weights` | text | required |" in page
    assert "Value: `auto`, `cpu`, `cuda`, `mps`. Default: `auto`." in page


def test_generator_prints_and_writes_the_page(tmp_path):
    command = [sys.executable, str(ROOT / "workflow" / "scripts" / "document_config.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    subprocess.run([*command, str(tmp_path / "page.md")], check=True)
    assert printed == (tmp_path / "page.md").read_text(encoding="utf-8")
    assert printed.startswith("# Configuration\n")


def test_schema_is_a_valid_schema_and_its_defaults_are_valid(small):
    from jsonschema import Draft202012Validator

    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(validated(small)))


def test_reading_the_configuration_imports_neither_torch_nor_snakemake():
    code = (
        "import sys; from seam.config import plan; from seam.config.checks.models import torchvision_weights; "
        "torchvision_weights(); "
        "print(sorted({'torch', 'torchvision', 'snakemake', 'numpy', 'scipy', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    scripts = ROOT / "workflow" / "scripts"
    done = subprocess.run([sys.executable, "-c", code], cwd=scripts, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------- config files as they are written


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"classes: [007, 010]", r"classes\[0\] is 007, which YAML reads as another number: put quotes around '007'"),
        (b"seed: 0777", "seed is 0777"),
        (b"seed: 1:30", "seed is 1:30, which YAML reads as a number in base 60"),
        (b"seed: " + b"9" * 5000, "seed is a number of 5000 characters"),
        (b"search: &a\n  again: *a", "has an alias"),
        (b"engines: &a [*a]", "has an alias"),
        (LAUGHS.encode(), "stand for more than 200,000 values"),
        (b"seed: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        ("# déjà vu".encode("latin-1"), r"is not in UTF-8 \(line 1\)"),
        ("seed: 1".encode("utf-16"), "is not in UTF-8"),
        (b"__use_yte__: true", "with which a config runs code"),
    ],
)
def test_a_config_file_is_checked_as_it_is_written(tmp_path, content, sentence):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        sources.check_command(["-n", "--configfile", str(path)])


def test_what_is_no_config_file(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for name, sentence in (
        ("none", "does not exist"),
        ("loop", "cannot be read"),
        ("fifo", "no file"),
        (".", "no file"),
    ):
        with pytest.raises(UserError, match=sentence):
            sources.check_command([f"--configfile={tmp_path / name}", "--cores", "2"])


def test_harmless_config_files_and_values(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {seed: 0}\nb: *a\nclasses: ['007', 7, 0, -1, 0.5, a007]\nseed: 12\n")
    sources.check_command(["all", "--config", "seed=1", "x={a: 2}", "--configfile", str(path), "-n"])
    with pytest.raises(UserError, match="--config seed is no key with a value"):
        sources.check_command(["--config", "seed"])


def test_an_empty_mapping_in_the_place_of_a_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("search: {lr_mask: {}}\nmodels: {}\n")
    with pytest.raises(UserError, match=r"search.lr_mask is an empty mapping"):
        sources.check_empty_mappings(path, {"search": {"lr_mask": 0.1}, "models": {}})
    sources.check_empty_mappings(path, {"search": {"lr_mask": {}}})


@pytest.mark.parametrize("cache", ["file/.cache", "missing/.cache"])
def test_caches_go_elsewhere_if_the_home_folder_cannot_have_them(tmp_path, monkeypatch, cache):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    monkeypatch.setenv("MPLCONFIGDIR", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    startup.use_writable_cache()
    moved = Path(os.environ["XDG_CACHE_HOME"])
    assert moved.name == ".cache" if cache.startswith("missing") else moved.is_dir() and moved.parent == tmp_path
