"""Direct reuse as a procedure: from a source model and a target problem to a model that is kept in a folder."""

import os
from dataclasses import asdict
from pathlib import Path

import torch

from seam import evaluation
from seam.data.batches import batches as batches_of
from seam.data.problems import binary_problem, multiclass_problem
from seam.data.storage import open_dataset
from seam.device import describe_device, is_cuda, select_device
from seam.errors import UserError
from seam.evaluation import predict, require_better_than_guessing, source_accuracy
from seam.files import save_tensors, sha256, write_csv, write_json
from seam.log import log
from seam.masks.bits import pack_bits
from seam.models.architectures import require_classifier
from seam.models.folding import fold
from seam.models.surgery import with_head
from seam.models.weights import open_source
from seam.reuse.load import load_reengineered
from seam.search.search import search
from seam.seeds import derive_seed
from seam.settings import SearchSettings
from seam.training.checkpoint import Checkpoint


def reengineer(**arguments):
    """Search one target problem and write its masks, history and metrics into its folder; return the metrics.

    arguments: those of `Reengineering`.
    """
    task = Reengineering(**arguments)
    metrics = task.keep(_search_alone(task))
    task.checkpoint.remove()
    return metrics


def reengineer_all(searches, device):
    """Search several target problems of one source model, and write the results of each into its folder.

    searches: the arguments of `Reengineering`, without the device, of each. On a CUDA GPU those with the same settings
    and numbers of images are searched in one vectorised pass, where the model allows that; all others one by one.
    Checkpoints are kept until all are done. Raises UserError after all others are searched if one of them fails.
    """
    tasks, failures = [], {}
    done = _search_in_one_pass(searches, device) if len(searches) > 1 and is_cuda(device) else {}
    for arguments in searches:
        target = arguments["target"]
        try:
            if target in done:
                tasks.append(done[target])
                continue
            task = Reengineering(**arguments, device=device)
            task.keep(_search_alone(task))
            tasks.append(task)
        except UserError as error:
            failures[target] = error
            log.error("%s: %s", target, error)
    if failures:
        target, error = next(iter(failures.items()))
        others = f" ({len(failures) - 1} more targets failed, see the log)" if len(failures) > 1 else ""
        raise UserError(f"{target}: {error}{others}" if len(searches) > 1 else str(error)) from error
    for task in tasks:
        task.checkpoint.remove()


def _search_alone(task):
    return search(task.model, task.train, task.selection, task.source_accuracy, task.settings, task.checkpoint)


def _search_in_one_pass(searches, device):
    """Search those that are alike in one vectorised pass; return {target: its task} of those that are done."""
    from seam.search.stacked import search_all

    tasks, done = [], {}
    for arguments in searches:
        try:
            tasks.append(Reengineering(**arguments, device=device))
        except UserError as error:  # said again, and for good, when it is searched alone
            log.warning("%s is not part of the pass: %s", arguments["target"], error)
    tasks = [task for task in tasks if (task.size, task.settings) == (tasks[0].size, tasks[0].settings)]
    if len(tasks) < 2:
        return done
    log.info("searches in one pass: %s", ", ".join(task.target for task in tasks))
    try:
        for task, result in search_all(tasks, tasks[0].settings):
            task.keep(result)
            done[task.target] = task
    except RuntimeError as error:  # what vmap cannot do, such as dropout, or too little memory for all
        log.info("the others are searched one by one, not in one pass: %s", str(error).partition("\n")[0])
    return done


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
        self.target, self.settings, self.device = target, SearchSettings(**settings), select_device(device)
        settings, device = self.settings, self.device
        images, source = open_dataset(dataset_folder), open_source(model_folder)
        chosen = settings.selection == "holdout"
        share = settings.holdout if chosen else 0.0
        # Drawn from the problem alone, so that all models are compared on the same images.
        draw = derive_seed(seed, "problem", dataset, problem, target)
        if problem == "binary":
            task = binary_problem(images, members[0], draw, share)
        else:
            task = multiclass_problem(images, members, draw, share)
        log.info("%d training, %d held-out and %d test images", len(task.train), len(task.holdout), len(task.test))

        def batches(split, part, **options):
            return batches_of(
                split, part.indices, part.labels, settings.batch_size,
                normalization=source.normalization, device=device, **options,
            )  # fmt: skip

        self.task, self.test = task, batches(images.test, task.test)
        self.selection = batches(images.train, task.holdout) if chosen else self.test
        network = source.module.to(device, memory_format=torch.channels_last)
        require_classifier(network, len(source.classes), images.size, f"The source model {model}")
        self.baseline = {
            name: source_accuracy(*predict(network, part), task, source.classes)
            for name, part in (("selection", self.selection), ("test", self.test))
        }
        self.source_accuracy = self.baseline["selection"][0]
        # With the target's classes alone to choose from: of a binary problem that is the same.
        what = f"The source model {model} on the {problem} problem {target}"
        require_better_than_guessing(self.baseline["test"][1], len(task.classes), len(task.test), what)

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
            **describe_device(device),
        }
        self.checkpoint = Checkpoint(checkpoint, about, __file__)
        self.size = len(task.train), len(self.selection.labels), len(task.classes)

    def keep(self, result):
        """Write what the search has found into the folder; gives the metrics."""
        import pandas as pd  # a quarter of a second that the first step need not wait for

        folder, task, chosen = self.folder, self.task, self.settings.selection == "holdout"
        save_tensors(
            folder / "masks.safetensors",
            {f"mask/{name}": packed for name, packed in pack_bits(result.bits).items()}
            | {f"head/{name}": value for name, value in result.head.items()},
            {
                "source": os.path.relpath(self.source_path.parent, folder),
                "source_sha256": sha256(self.source_path),
                "classes": task.classes,
            },
        )
        write_csv(folder / "history.csv", pd.DataFrame(result.history))
        # What is reported is what is stored: the model is read back from its folder.
        accuracy = evaluation.accuracy(*predict(load_reengineered(folder).to(self.device), self.test))
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
            **describe_device(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        write_json(folder / "metrics.json", metrics)
        log.info("test accuracy %.4f (source %.4f), retention %.4f", accuracy, source[0], metrics["retention"])
        if left == count:
            log.warning("no weight was removed: give the search more epochs, or a higher alpha or lr_mask")
        return metrics
