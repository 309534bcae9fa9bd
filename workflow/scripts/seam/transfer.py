"""Indirect reuse as procedures: from a source model and another data set to students, and what they inherit.

The three steps of SeaM are `train_head`, `search_masks` and `train_student`; the last one also makes the students
that it is compared with: fine-tuned from the whole source model (standard), trained from nothing (retrain), and from
weights kept by magnitude or at random instead of by the search.
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from seam import data, evaluate, masking, models, problems, robustness
from seam.adam import Adam
from seam.checkpoint import Checkpoint, Run
from seam.data import storage
from seam.data.batches import batches as batches_of
from seam.device import derive_seed, describe, select
from seam.files import UserError, load_tensors, read_json, save_tensors, sha256, whole, write_csv, write_json
from seam.graphs import graphed
from seam.masking import Masks
from seam.progress import log
from seam.search import mask_step
from seam.train import Finetuning, finetune

MASKED = ("seam", "magnitude", "random")


class Job:
    """What the procedures share: the images and their parts, the source model, the device, the seed.

    model_folder, dataset_folder: as the workflow keeps them. names: the model's, the data set's and the job's own,
    from which, with `seed`, every random choice derives. common: {"batch_size", "selection", "holdout", "last_layer"}.
    """

    def __init__(self, model_folder, dataset_folder, names, common, seed, device):
        self.device, self.common = select(device), common
        self.images, self.source = data.open(dataset_folder), models.open(model_folder)
        self.classes, self.shape = self.images.classes, (3, *self.images.size)
        what = f"The source model {names[0]}"
        models.require_classifier(self.source.module, len(self.source.classes), self.images.size, what)
        self.last = models.last_layer(self.source.module, len(self.source.classes), self.shape, common["last_layer"])
        model, dataset, *_ = names
        for name, part in (("training", self.images.train), ("test", self.images.test)):
            problems.require_all(part.labels, self.classes, f"The {name} images of {dataset}")
        everything = problems.Part(np.arange(len(self.images.train)), self.images.train.labels)
        self.held_out = common["selection"] == "holdout"
        # Drawn from the data set alone, so that all students are compared on the same images.
        share = common["holdout"] if self.held_out else 0.0
        self.train_part, self.holdout_part = problems.split(everything, share, derive_seed(seed, "transfer", dataset))
        self.test_part = problems.Part(np.arange(len(self.images.test)), self.images.test.labels)
        self.seed = derive_seed(seed, *names)
        torch.manual_seed(self.seed)
        self.about = {
            "names": list(names),
            "hyper-parameters": common,
            "seed": seed,
            "data": sha256(Path(dataset_folder) / "dataset.json"),
            "source model": sha256(Path(model_folder) / "source.safetensors"),
        } | describe(self.device)

    def student(self, pretrained=True):
        """The source model with a new last layer for the data set's classes, on the device."""
        module = self.source.module
        if not pretrained:
            module = models.build(self.source.architecture, len(self.source.classes))
        module = models.with_last_layer(module, self.last, len(self.classes)).requires_grad_(True)
        return module.to(self.device, memory_format=torch.channels_last)

    def batches(self, split, part, **options):
        return batches_of(
            split, part.indices, part.labels, self.common["batch_size"],
            normalization=self.source.normalization, device=self.device, **options,
        )  # fmt: skip

    def train(self):
        generator = torch.Generator().manual_seed(self.seed)
        augmentation = self.images.augmentation
        return self.batches(
            self.images.train, self.train_part, augmentation=augmentation, generator=generator, shuffle=True
        )

    def test(self):
        return self.batches(self.images.test, self.test_part)

    def selection(self):
        return self.batches(self.images.train, self.holdout_part) if self.held_out else self.test()

    def facts(self):
        return {
            "images": {
                "train": len(self.train_part),
                "holdout": len(self.holdout_part),
                "test": len(self.test_part),
            },
            **describe(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def train_head(folder, model_folder, dataset_folder, model, dataset, common, head, seed, device, checkpoint):
    """Step 1: the source model's weights as they are, a new last layer. Writes head.safetensors and head.csv.

    head: a dictionary of `train.Finetuning`, without `lr_last`.
    """
    job = Job(model_folder, dataset_folder, (model, dataset, "head"), common, seed, device)
    kept, student = Checkpoint(checkpoint, job.about | {"settings": head}), job.student()
    history, epoch = finetune(student, job.last, job.train(), job.selection(), Finetuning(**head), checkpoint=kept)
    folder = Path(folder)
    write_csv(folder / "head.csv", pd.DataFrame(history))
    layer = models.copied(student.get_submodule(job.last))
    seconds = sum(row["seconds"] for row in history)
    save_tensors(folder / "head.safetensors", layer, {"selected_epoch": epoch, "settings": head})
    kept.remove()
    log.info("the last layer was trained in %.0f s, %d epochs", seconds, len(history))


def search_masks(
    folder, model_folder, dataset_folder, model, dataset, common, search, thresholds, seed, device, checkpoint
):
    """Step 2: the masks of all `thresholds` (shares of the weights removed) in one search.

    Reads head.safetensors and writes masks.safetensors and history.csv in `folder`. search: {"epochs", "lr_mask",
    "lr_last", "alpha"}. The masks of a threshold are those of the first epoch at whose end so many are removed. A
    threshold that is not reached has none: the log says so, and `bits_of` raises for the students that need it.
    """
    folder = Path(folder)
    job = Job(model_folder, dataset_folder, (model, dataset, "masks"), common, seed, device)
    student = job.student().requires_grad_(False)
    layer = student.get_submodule(job.last)
    layer.load_state_dict(load_tensors(folder / "head.safetensors")[0])
    layer.requires_grad_(True)
    about = {"settings": search, "thresholds": list(thresholds), "head": sha256(folder / "head.safetensors")}
    kept = Checkpoint(checkpoint, job.about | about)
    selection = job.selection()
    masks = Masks(student, {job.last} | masking.unused(student, next(iter(selection))[0][:2], {job.last}))
    optimizer = Adam([(masks.values.values(), search["lr_mask"]), (layer.parameters(), search["lr_last"])])
    parts = {"masks": masks, "last": layer, "optimizer": optimizer}
    step = graphed(mask_step(student, layer, masks, optimizer, search["alpha"]), parts.values(), job.device)
    with Run(job.train(), parts, kept, "lower transfer.search.lr_mask, lr_last or alpha") as run:
        while run.epoch <= search["epochs"] and len(run.extra) < len(thresholds):
            models.training_mode(student)
            masks.train()
            images, right, loss = run.one_epoch(step)
            retention = masks.retention(run.epoch)
            row = {
                "epoch": run.epoch,
                "loss": loss / images + search["alpha"] * retention,
                "cross_entropy": loss / images,
                "penalty": search["alpha"] * retention,
                "train_accuracy": right / images,
                "accuracy": evaluate.accuracy(*evaluate.outputs(student, run.watched(selection))),
                "retention": retention,
                "seconds": run.epoch_seconds(),
            }
            crossed = [t for t in thresholds if 1 - retention >= t and f"{t:g}" not in run.extra]
            reached = {"epoch": run.epoch, "bits": masks.bits()}
            log.info(
                "epoch %d/%d loss %.4f accuracy %.4f retention %.4f %.1f s%s",
                run.epoch, search["epochs"], row["loss"], row["accuracy"], retention, row["seconds"],
                "".join(f" {t:g} removed" for t in crossed),
            )  # fmt: skip
            run.end_epoch(row, **{f"{t:g}": reached for t in crossed})
    missing = [f"{t:g}" for t in thresholds if f"{t:g}" not in run.extra]
    most = 1 - min(row["retention"] for row in run.history)
    if missing:
        log.warning("%s of the weights removed was not reached: %.4f at most", ", ".join(missing), most)
    write_csv(folder / "history.csv", pd.DataFrame(run.history))
    save_tensors(
        folder / "masks.safetensors",
        {
            f"{threshold}/{name}": packed
            for threshold, found in run.extra.items()
            for name, packed in masking.pack(found["bits"]).items()
        },
        {
            "source_sha256": sha256(Path(model_folder) / "source.safetensors"),
            "last_layer": job.last,
            "settings": {"head": load_tensors(folder / "head.safetensors")[1]["settings"], "search": search},
            "most_removed": most,
            "reached": {threshold: found["epoch"] for threshold, found in run.extra.items()},
        },
    )
    kept.remove()


def bits_of(path, student, threshold, source, generator):
    """(bits, epoch, settings) of a masked student: {name: boolean mask}, when the search reached the threshold, and its
    hyper-parameters and step 1's. Raises UserError if it did not reach it.

    magnitude and random keep as many weights of each parameter as the search does.
    """
    tensors, about = load_tensors(path)
    name = f"{threshold:g}"
    if name not in about["reached"]:
        raise UserError(
            f"The search of {path} removed at most {about['most_removed']:.4f} of the weights, not {name}: give "
            "transfer.search more epochs, a higher lr_mask or alpha, or take the threshold out."
        )
    packed = {key.partition("/")[2]: value for key, value in tensors.items() if key.partition("/")[0] == name}
    bits = masking.unpack(packed, source)
    if student == "magnitude":
        bits = masking.magnitude_bits(source, bits)
    elif student == "random":
        bits = masking.random_bits(bits, generator)
    return bits, about["reached"][name], about["settings"]


def train_student(
    folder, model_folder, dataset_folder, model, dataset, student, threshold, common, settings, seed, origin, device,
    checkpoint, masks=None,
):  # fmt: skip
    """Step 3, or another student: writes student.safetensors, history.csv and training.json into `folder`.

    student: standard, retrain, seam, magnitude or random; the last three need `threshold` and `masks`, the file of
    `search_masks`. settings: a dictionary of `train.Finetuning`. origin: the source model's "architecture" and
    "weights_origin", as the tables have them.
    """
    folder = Path(folder)
    job = Job(model_folder, dataset_folder, (model, dataset, student, threshold), common, seed, device)
    about = job.about | {"settings": settings}
    bits, search, block, before = None, {"search_epochs": None, "search_seconds": None}, student, {}
    if student in MASKED:
        about["masks"] = sha256(masks)
        generator = torch.Generator().manual_seed(derive_seed(seed, model, dataset, student, threshold, "masks"))
        block = "finetune"
        bits, epoch, before = bits_of(masks, student, threshold, job.source.module, generator)
        steps = [pd.read_csv(Path(masks).parent / name)["seconds"] for name in ("head.csv", "history.csv")]
        search = {"search_epochs": epoch, "search_seconds": float(steps[0].sum() + steps[1][:epoch].sum())}
        masking.bake(job.source.module, bits)
    weights = masking.maskable(job.source.module, exclude={job.last})
    kept, module = Checkpoint(checkpoint, about), job.student(pretrained=student != "retrain")
    options = Finetuning(**settings)
    zeros = bits if options.keep_zeros else None
    history, epoch = finetune(module, job.last, job.train(), job.selection(), options, zeros, kept)
    save_tensors(
        folder / "student.safetensors",
        module.state_dict(),
        {
            **models.described(job.source.architecture),
            "source_classes": len(job.source.classes),
            "last_layer": job.last,
            "classes": job.classes,
            "normalization": job.source.normalization,
        },
    )
    write_csv(folder / "history.csv", pd.DataFrame(history))
    shared = {name: common[name] for name in ("batch_size", "holdout", "selection")}
    if bits:  # some may have no mask: those that no output depends on
        weights = {name: weights[name] for name in bits}
    count, left = sum(p.numel() for p in weights.values()), bits and sum(int(bit.sum()) for bit in bits.values())
    training = {
        "model": model,
        "dataset": dataset,
        "student": student,
        "threshold": threshold,
        **origin,
        "seed": seed,
        "settings": {**shared, **before, block: settings},
        "retention": bits and left / count,
        "weights": count,
        "kept": left,
        "holdout_accuracy": history[epoch - 1]["accuracy"] if job.held_out else None,
        "epochs": len(history),
        "selected_epoch": epoch,
        **search,
        "seconds": sum(row["seconds"] for row in history),  # also of what was done before an interruption
        **job.facts(),
    }
    write_json(folder / "training.json", training)
    kept.remove()
    return training


def load(folder):
    """The student in `folder`: a plain module for inference, without gradients, with `classes` and `normalization`.

    It maps images [B, 3, H, W], normalised by that mean and standard deviation, to logits over its classes. Raises
    UserError where a file is damaged.
    """
    path = Path(folder) / "student.safetensors"
    state, about = load_tensors(path)
    if "source_classes" not in about:
        raise UserError(f"{path} was not written by this workflow: delete it, and it is made again.")
    module = models.build(models.found(folder, about), about["source_classes"])
    models.with_last_layer(module, about["last_layer"], len(about["classes"]))
    if problem := models.load_state(module, state, path):
        raise UserError(problem)
    module.classes, module.normalization = about["classes"], tuple(map(tuple, about["normalization"]))
    return module.eval().requires_grad_(False)


def attack_source(folder, model_folder, dataset_folder, model, dataset, last_layer, settings, seed, device):
    """Perturb the data set's test images against the source model. Writes perturbations.npy and attack.json.

    perturbations.npy: int8 [N, H, W, 3], in steps of eps / 127. settings: a dictionary of `robustness.Settings`.
    """
    folder = Path(folder)
    common = {"batch_size": settings["batch_size"], "selection": "test", "holdout": 0.0, "last_layer": last_layer}
    job = Job(model_folder, dataset_folder, (model, dataset, "attack"), common, seed, device)
    options = robustness.Settings(**{**settings, "clip": tuple(settings["clip"])})
    network = models.features(job.source.module, job.last).to(job.device, memory_format=torch.channels_last)
    with whole(folder / "perturbations.npy") as temporary:
        shape = (len(job.images.test), *job.images.size, 3)
        into = np.lib.format.open_memmap(temporary, "w+", np.int8, shape)
        storage.reserve(temporary)  # a memory map that outgrows the disk would end the process
        start = time.perf_counter()
        found = robustness.perturbations(network, job.test(), options, into)
        into.flush()
    write_json(
        folder / "attack.json",
        {"model": model, "dataset": dataset, "seed": seed, "settings": asdict(options), **found}
        | {"seconds": time.perf_counter() - start, **job.facts(), "images": shape[0]},
    )


def evaluate_defects(folder, attack_folder, dataset_folder, device, batch_size=64):
    """Judge the student in `folder` on the test images as they are and perturbed. Writes metrics.json."""
    folder, device = Path(folder), select(device)
    student, images = load(folder), data.open(dataset_folder)
    training, attack = read_json(folder / "training.json"), read_json(Path(attack_folder) / "attack.json")
    levels = np.load(Path(attack_folder) / "perturbations.npy", mmap_mode="r")
    weights = masking.maskable(student)
    count, zeros = sum(p.numel() for p in weights.values()), sum(int((p == 0).sum()) for p in weights.values())
    student = student.to(device, memory_format=torch.channels_last)
    everything = np.arange(len(images.test))
    test = batches_of(
        images.test, everything, images.test.labels, batch_size, normalization=student.normalization, device=device
    )
    found = robustness.judge(student, test, levels, robustness.Settings(**attack["settings"]))
    names = {name: training[name] for name in ("model", "dataset", "student", "threshold")}
    write_json(folder / "metrics.json", {**names, **found, "weights": count, "zeros": zeros, "sparsity": zeros / count})
    log.info("accuracy %.4f, defect inheritance rate %s", found["accuracy"], found["defect_inheritance_rate"])
