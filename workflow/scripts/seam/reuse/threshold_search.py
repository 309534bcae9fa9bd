"""SeaM, step 2: search the masks of a source model for another data set, at several thresholds in one search."""

from pathlib import Path

import pandas as pd

from seam.evaluation import accuracy, predict
from seam.files import load_tensors, save_tensors, sha256, write_csv
from seam.log import log
from seam.masks.bits import pack_bits
from seam.masks.layers import unused_parameters
from seam.masks.masks import Masks
from seam.models.surgery import set_training_mode
from seam.reuse.transfer import TransferTask
from seam.search.search import mask_step
from seam.training.adam import Adam
from seam.training.checkpoint import Checkpoint
from seam.training.graphs import graphed
from seam.training.run import Run


def search_masks(
    folder, model_folder, dataset_folder, model, dataset, common, search, thresholds, seed, device, checkpoint
):
    """Step 2: the masks of all `thresholds` (shares of the weights removed) in one search.

    Reads head.safetensors and writes masks.safetensors and history.csv in `folder`. search: {"epochs", "lr_mask",
    "lr_last", "alpha"}. The masks of a threshold are those of the first epoch at whose end so many are removed. A
    threshold that is not reached has none: the log says so, and `bits_of` raises for the students that need it.
    """
    folder = Path(folder)
    job = TransferTask(model_folder, dataset_folder, (model, dataset, "masks"), common, seed, device)
    student = job.student().requires_grad_(False)
    layer = student.get_submodule(job.last)
    layer.load_state_dict(load_tensors(folder / "head.safetensors")[0])
    layer.requires_grad_(True)
    about = {"settings": search, "thresholds": list(thresholds), "head": sha256(folder / "head.safetensors")}
    kept = Checkpoint(checkpoint, job.about | about, __file__)
    selection = job.selection()
    masks = Masks(student, {job.last} | unused_parameters(student, next(iter(selection))[0][:2], {job.last}))
    optimizer = Adam([(masks.values.values(), search["lr_mask"]), (layer.parameters(), search["lr_last"])])
    parts = {"masks": masks, "last": layer, "optimizer": optimizer}
    step = graphed(mask_step(student, layer, masks, optimizer, search["alpha"]), parts.values(), job.device)
    with Run(job.train(), parts, kept, "lower transfer.search.lr_mask, lr_last or alpha") as run:
        while run.epoch <= search["epochs"] and len(run.extra) < len(thresholds):
            set_training_mode(student)
            masks.train()
            images, right, loss = run.one_epoch(step)
            retention = masks.retention(run.epoch)
            row = {
                "epoch": run.epoch,
                "loss": loss / images + search["alpha"] * retention,
                "cross_entropy": loss / images,
                "penalty": search["alpha"] * retention,
                "train_accuracy": right / images,
                "accuracy": accuracy(*predict(student, run.watched(selection))),
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
            for name, packed in pack_bits(found["bits"]).items()
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
