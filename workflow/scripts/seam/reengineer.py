"""Direct reuse as a procedure: from a source model and a target problem to a model that is kept in a folder."""

import os
from dataclasses import asdict
from pathlib import Path

import torch

from seam import data, evaluate, masking, models, problems
from seam.checkpoint import Checkpoint
from seam.data.batches import batches as batches_of
from seam.device import derive_seed, describe, select
from seam.files import UserError, load_tensors, save_tensors, sha256, write_csv, write_json
from seam.folding import fold
from seam.progress import log
from seam.search import Settings, search, with_head


def reengineer(*arguments, **named):
    """Search one target problem, given as `Reengineering` takes it, and write masks.safetensors, history.csv and
    metrics.json into its folder; gives the metrics."""
    one = Reengineering(*arguments, **named)
    return one.keep(search(one.model, one.train, one.selection, one.source_accuracy, one.settings, one.checkpoint))


def reengineer_all(searches, device):
    """As `reengineer` of each, all in one pass, where they can be; yields the target of each that is kept.

    searches: its arguments, dictionaries without the device, of the same source model and settings. Left out are those
    that fail, with a line in the log, and those that have another number of images than the first.
    """
    from seam import vectorised

    ready = []
    for one in searches:
        try:
            ready.append(Reengineering(**one, device=device))
        except UserError as error:
            log.warning("%s is left to its own job: %s", one["target"], error)
    ready = [one for one in ready if one.size == ready[0].size]
    if len(ready) < 2:
        return
    log.info("searches in one pass: %s", ", ".join(one.target for one in ready))
    try:
        for one, result in vectorised.search_all(ready, ready[0].settings):
            one.keep(result)
            yield one.target
    except RuntimeError as error:  # what vmap cannot do, such as dropout, or too little memory for all
        log.info("the rest one after the other, as one pass cannot be: %s", str(error).partition("\n")[0])


class Reengineering:
    """One target problem, ready for its search.

    model, dataset, problem, target: names, as in the result folders. members: the target's classes.
    settings: a dictionary of `search.Settings`. Every random choice derives from `seed` and these names.
    checkpoint: the path of a file from which a search that was interrupted goes on; it is removed in the end.

    What `search` takes of it: model, the source network with the target's head; train, selection: batches;
    source_accuracy, on the images of the selection; settings; checkpoint.
    """

    def __init__(
        self,
        folder, model_folder, dataset_folder, model, dataset, problem, target, members, settings, seed, device,
        checkpoint,
    ):  # fmt: skip
        self.folder, self.names, self.seed = Path(folder), (model, dataset, problem, target), seed
        self.target, self.settings, self.device = target, Settings(**settings), select(device)
        settings, device = self.settings, self.device
        images, source = data.open(dataset_folder), models.open(model_folder)
        chosen = settings.selection == "holdout"
        share = settings.holdout if chosen else 0.0
        # Drawn from the problem alone, so that all models are compared on the same images.
        draw = derive_seed(seed, "problem", dataset, problem, target)
        if problem == "binary":
            task = problems.binary(images, members[0], draw, share)
        else:
            task = problems.multiclass(images, members, draw, share)
        log.info("%d training, %d held-out and %d test images", len(task.train), len(task.holdout), len(task.test))

        def batches(split, part, **options):
            return batches_of(
                split, part.indices, part.labels, settings.batch_size,
                normalization=source.normalization, device=device, **options,
            )  # fmt: skip

        self.task, self.test = task, batches(images.test, task.test)
        self.selection = batches(images.train, task.holdout) if chosen else self.test
        network = source.module.to(device, memory_format=torch.channels_last)
        models.require_classifier(network, len(source.classes), images.size, f"The source model {model}")
        self.baseline = {
            name: evaluate.source_accuracy(*evaluate.outputs(network, part), task, source.classes)
            for name, part in (("selection", self.selection), ("test", self.test))
        }
        self.source_accuracy = self.baseline["selection"][0]
        # With the target's classes alone to choose from: of a binary problem that is the same.
        what = f"The source model {model} on the {problem} problem {target}"
        evaluate.require_better_than_guessing(self.baseline["test"][1], len(task.classes), len(task.test), what)

        job = derive_seed(seed, "search", model, problem, target)
        torch.manual_seed(job)
        generator = torch.Generator().manual_seed(job)
        self.train = batches(
            images.train, task.train, augmentation=images.augmentation, generator=generator, shuffle=True
        )
        self.model = with_head(fold(network), len(source.classes), len(task.classes)).to(device)
        self.source_path = Path(model_folder) / "source.safetensors"
        about = {
            "names": [*self.names, list(members)],
            "hyper-parameters": asdict(settings),
            "seed": seed,
            "data": sha256(Path(dataset_folder) / "dataset.json"),
            "source model": sha256(self.source_path),
            **describe(device),
        }
        self.checkpoint = Checkpoint(checkpoint, about)
        self.size = len(task.train), len(self.selection.labels), len(task.classes)

    def keep(self, result):
        """Write what the search has found into the folder; gives the metrics."""
        import pandas as pd  # a quarter of a second that the first step need not wait for

        folder, task, chosen = self.folder, self.task, self.settings.selection == "holdout"
        save_tensors(
            folder / "masks.safetensors",
            {f"mask/{name}": packed for name, packed in masking.pack(result.bits).items()}
            | {f"head/{name}": value for name, value in result.head.items()},
            {
                "source": os.path.relpath(self.source_path.parent, folder),
                "source_sha256": sha256(self.source_path),
                "classes": task.classes,
            },
        )
        write_csv(folder / "history.csv", pd.DataFrame(result.history))
        # What is reported is what is stored: the model is read back from its folder.
        accuracy = evaluate.accuracy(*evaluate.outputs(load(folder).to(self.device), self.test))
        row, source = result.history[result.selected_epoch - 1], self.baseline["test"]
        count, left = (sum(int(size(b)) for b in result.bits.values()) for size in (torch.numel, torch.sum))
        metrics = {
            **dict(zip(("model", "dataset", "problem", "target"), self.names, strict=True)),
            "classes": list(task.classes),
            "seed": self.seed,
            "settings": asdict(self.settings),
            "images": {"train": len(task.train), "holdout": len(task.holdout), "test": len(task.test)},
            "accuracy": {"source": source[0], "source_restricted": source[1], "reengineered": accuracy},
            "holdout_accuracy": {"source": self.source_accuracy, "reengineered": row["accuracy"]} if chosen else None,
            "retention": left / count,
            "weights": count,
            "kept": left,
            "epochs": len(result.history),
            "selected_epoch": result.selected_epoch,
            "seconds": sum(row["seconds"] for row in result.history),  # also of what was done before an interruption
            **describe(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(folder / "metrics.json", metrics)
        self.checkpoint.remove()
        log.info("test accuracy %.4f (source %.4f), retention %.4f", accuracy, source[0], metrics["retention"])
        if left == count:
            log.warning("no weight was removed: give the search more epochs, or a higher alpha or lr_mask")
        return metrics


def load(folder, source=None):
    """The re-engineered model in `folder`: a plain module for inference, its unneeded weights zero, without gradients.

    It maps images [B, 3, H, W], normalised by its attribute `normalization` (mean, standard deviation per
    channel), to logits [B, n] over its attribute `classes`. `source` is the folder of the source model,
    if that is no longer where it was. Raises UserError where a file is missing, damaged or another one.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file: give the folder that it lies in.")
    for name, function in (("student.safetensors", "seam.transfer.load"), ("source.safetensors", "seam.models.open")):
        if (folder / name).is_file():
            raise UserError(f"{folder} holds {name} and no re-engineered model: open it by {function}.")
    tensors, about = load_tensors(folder / "masks.safetensors")
    if not {"source", "source_sha256", "classes"} <= about.keys():
        raise UserError(f"{folder}/masks.safetensors was not written by a search: run the workflow again.")
    origin = models.open(source or folder / about["source"], about["source_sha256"])
    parts = {"mask": {}, "head": {}}
    for name, tensor in tensors.items():
        kind, _, name = name.partition("/")
        parts[kind][name] = tensor
    try:
        masking.bake(origin.module, masking.unpack(parts["mask"], origin.module))
        model = with_head(origin.module, len(origin.classes), len(about["classes"]))
        model.head.load_state_dict(parts["head"])
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{folder}/masks.safetensors does not fit its source model ({error}).") from error
    model.classes, model.normalization = about["classes"], origin.normalization
    return model.eval().requires_grad_(False)
