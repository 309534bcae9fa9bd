"""Direct reuse: from a source model and a target problem to a re-engineered model in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam import evaluation
from seam.data.batches import batches
from seam.data.drawing import draw_problem, problem_seed
from seam.data.problems import Subset, class_weights, hold_out
from seam.data.storage import Split, open_dataset
from seam.device import is_cuda, select_device
from seam.errors import UserError
from seam.evaluation import (
    balanced_accuracy,
    class_metrics,
    confusion_matrix,
    outputs_of_classes,
    predict,
    require_better_than_guessing,
    require_several_answers,
    source_accuracy,
    source_predictions,
)
from seam.files import read_json, save_tensors, sha256, write_csv, write_json
from seam.log import log
from seam.masks.bits import pack_bits
from seam.masks.channels import ChannelGroups, find_groups
from seam.masks.layers import maskable, unused_parameters
from seam.masks.shrink import require_exact_removal, shrink
from seam.models.architectures import require_classifier
from seam.models.folding import fold
from seam.models.surgery import copy_state, initialise_head, to_channels_last, with_head, with_versions
from seam.models.weights import open_source
from seam.reuse.load import load_reengineered
from seam.reuse.provenance import environment, provenance
from seam.search.by_channel import search_channels
from seam.search.distillation import Distillation, source_outputs
from seam.search.mask_search import SearchResult
from seam.search.plain import search
from seam.seeds import derive_seed
from seam.settings import SearchSettings, choose_batch_size, for_few_images
from seam.training.checkpoint import Checkpoint
from seam.training.losses import Loss, class_loss


def reengineer(**arguments: Any) -> dict[str, Any]:
    """Search one target problem; write its masks, history and metrics into its folder; return the metrics.

    arguments: those of `Reengineering`.
    """
    reengineering = Reengineering(**arguments)
    metrics = reengineering.save(reengineering.search())
    reengineering.checkpoint.remove()
    return metrics


def reengineer_all(searches: Sequence[Mapping[str, Any]], device: str) -> None:
    """Search several target problems of one source model; write the results of each into its folder.

    searches: the arguments of `Reengineering`, without the device, of each. On a CUDA GPU, the searches with equal
    settings and numbers of images are stacked in one pass, if the model allows that. All others run one by one.
    Checkpoints stay until all searches are done. If some fail, the others still run; UserError is raised at the end.
    """
    done = _search_in_one_pass(searches, device) if len(searches) > 1 and is_cuda(device) else {}
    finished, failures = [], {}
    for arguments in searches:
        target = arguments["target"]
        try:
            reengineering = done.get(target)
            if reengineering is None:
                reengineering = Reengineering(**arguments, device=device)
                reengineering.save(reengineering.search())
            finished.append(reengineering)
        except UserError as error:
            failures[target] = error
            log.error("%s: %s", target, error)
    if failures:
        target, error = next(iter(failures.items()))
        others = f" ({len(failures) - 1} more targets failed, see the log)" if len(failures) > 1 else ""
        raise UserError(f"{target}: {error}{others}" if len(searches) > 1 else str(error)) from error
    for reengineering in finished:
        reengineering.checkpoint.remove()


def _search_in_one_pass(searches: Sequence[Mapping[str, Any]], device: str) -> dict[str, Reengineering]:
    """Stack the largest group of searches that are alike; return {target: its re-engineering} of those that are done.

    Searches with a budget or a penalty by cost are not stacked.
    """
    first = SearchSettings(**searches[0]["settings"])
    if not first.can_share_a_pass:
        log.info("searches with a budget or a penalty by cost are not stacked: they run one by one")
        return {}
    from seam.search.stacked import search_stack  # only a GPU needs it

    ready, done = [], {}
    for arguments in searches:
        try:
            ready.append(Reengineering(**arguments, device=device))
        except UserError as error:  # raised again when it is searched alone
            log.warning("%s is not part of the pass: %s", arguments["target"], error)
    groups = [[each for each in ready if (each.sizes, each.settings) == (one.sizes, one.settings)] for one in ready]
    alike = max(groups, key=len, default=[])  # the first of the largest
    if len(alike) < 2:
        return done
    log.info("searches in one pass: %s", ", ".join(each.target for each in alike))
    try:
        for reengineering, result in search_stack(alike, alike[0].settings):
            try:
                reengineering.save(result)
                done[reengineering.target] = reengineering
            except UserError as error:  # raised again when it is searched alone
                log.warning("%s: %s", reengineering.target, error)
    # An operation that vmap cannot do, such as dropout, too little memory, or a member that cannot be searched.
    except (RuntimeError, UserError) as error:
        log.info("the others are searched one by one, not in one pass: %s", str(error).partition("\n")[0])
    return done


class Reengineering:
    """One target problem of a source model, ready for its search.

    model: the source network with the head of the target problem. train, selection, test: batches of images.
    source_accuracy: that of the source model on the selection. sizes: what the searches of a stack must share.
    """

    def __init__(
        self,
        folder: str | Path,
        model_folder: str | Path,
        dataset_folder: str | Path,
        model: str,
        dataset: str,
        problem: str,
        target: str,
        members: Sequence[str],
        settings: dict[str, Any],
        seed: int,
        device: str,
        checkpoint: str | Path,
        architecture: str | None = None,
        layer_costs: str | Path | None = None,
        allow_one_answer: bool = False,
    ) -> None:
        """Draw the problem's images, measure the source model on them, and prepare the search.

        model, dataset, problem, target: names, as in the result folders, from which, with `seed`, every random choice
        derives. members: the target's classes. settings: a dictionary of `SearchSettings`. checkpoint: the path of the
        file to resume from. architecture: the source model's, needed if it is a file. layer_costs: the path of the
        table that a latency budget needs (see `seam.cost.layer_costs` and, for channels, `seam.cost.channel_costs`).
        allow_one_answer: whether the result may give the same answer for all test images: a recovery can repair that.
        Raises UserError if the source model is no better than guessing.
        """
        self.folder, self.model_folder, self.seed = Path(folder), Path(model_folder), seed
        self.names = {"model": model, "dataset": dataset, "problem": problem, "target": target}
        self.target, self.device = target, select_device(device)
        self.architecture, self.allow_one_answer = architecture, allow_one_answer
        images, source = open_dataset(dataset_folder), open_source(model_folder, architecture=architecture)
        self.size = images.size
        self.problem = draw_problem(images, dataset, problem, target, members, seed, holdout=0.0)
        fewest = int(np.bincount(self.problem.train.labels).min())
        self.settings = for_few_images(SearchSettings(**settings), fewest)
        if self.settings != SearchSettings(**settings):
            log.info("few images: %d of the smallest class, so the search takes the settings for few_images", fewest)
        self.uses_holdout = self.settings.selection == "holdout"
        if self.uses_holdout:
            parts = hold_out(self.problem.train, self.settings.holdout, problem_seed(dataset, problem, target, seed))
            self.problem = replace(self.problem, train=parts[0], holdout=parts[1])
        train, holdout, test = self.problem.train, self.problem.holdout, self.problem.test
        log.info("%d training, %d held-out and %d test images", len(train), len(holdout), len(test))
        if not self.settings.batch_size:
            size = choose_batch_size(len(train), self.settings.epochs)
            self.settings = replace(self.settings, batch_size=size)

        def batches_of(split: Split, subset: Subset, **options: Any) -> Any:
            return batches(
                split, subset.indices, subset.labels, self.settings.batch_size,
                normalization=source.normalization, device=self.device, **options,
            )  # fmt: skip

        self.test = batches_of(images.test, test)
        selected_on = {"holdout": (images.train, holdout), "last": (images.train, train)}
        if self.settings.selection == "test":
            self.selection = self.test
        else:
            self.selection = batches_of(*selected_on[self.settings.selection])
        self.is_balanced = {"auto": self.problem.is_unequal, "always": True, "never": False}[self.settings.balance]
        self.measure = balanced_accuracy if self.is_balanced else evaluation.accuracy
        self.class_weights = None
        if self.is_balanced:
            self.class_weights = class_weights(train.labels, len(self.problem.classes))
            weights = ", ".join(f"{name} {weight:.3g}" for name, weight in self._by_class(self.class_weights))
            log.info("balanced accuracy decides, and the loss weighs the images of %s", weights)
        network = to_channels_last(source.module, self.device, self.size)
        require_classifier(network, len(source.classes), images.size, f"The source model {model}")
        outputs = {
            name: predict(network, subset) for name, subset in (("selection", self.selection), ("test", self.test))
        }
        self.baseline = {
            name: source_accuracy(*each, self.problem, source.classes, balanced=self.is_balanced)
            for name, each in outputs.items()
        }
        self.source_accuracy = self.baseline["selection"][0]
        self.source_test = outputs["test"][0], source.classes
        subject = f"The source model {model} on the {problem} problem {target}"
        counts = np.bincount(test.labels).tolist() if self.is_balanced else None
        require_better_than_guessing(self.baseline["test"][1], len(self.problem.classes), len(test), subject, counts)

        search_seed = derive_seed(seed, "search", model, problem, target)
        torch.manual_seed(search_seed)
        generator = torch.Generator().manual_seed(search_seed)
        self.train = batches_of(
            images.train, train, augmentation=images.augmentation, generator=generator, shuffle=True
        )
        self.size, self.groups = images.size, None
        if self.settings.granularity == "channel":  # batch norm is not folded, because it trains along
            self.groups = find_groups(network, torch.zeros(1, 3, *images.size, device=self.device))
            for sentence in self.groups.sentences():
                log.info(sentence)
        else:
            network = fold(network)
        self.model = with_head(network, len(source.classes), len(self.problem.classes))
        if self.settings.initial_head == "source":
            head = self.model.get_submodule("head")
            assert isinstance(head, nn.Linear)
            initialise_head(head, outputs_of_classes(self.problem, source.classes), *outputs["selection"])
        self.model.to(self.device)
        self.source_classes, self.data_classes = source.classes, images.classes
        names = [*self.names.values(), list(members)]
        self.layer_costs = None if layer_costs is None else read_json(layer_costs)
        tables = {} if layer_costs is None else {"layer costs": sha256(layer_costs)}
        self.provenance = provenance(
            names, self.settings.recorded(), seed, self.device, dataset_folder, model_folder, **tables
        )
        self.checkpoint = Checkpoint(checkpoint, self.provenance, __file__)
        self.sizes = len(train), len(self.selection.labels), len(self.problem.classes), self.class_weights

    def _by_class(self, values: Iterable[Any]) -> list[tuple[str, Any]]:
        return list(zip(self.problem.classes, values, strict=True))

    def search(self) -> SearchResult:
        """Search alone, not in a stack; return the result."""
        if self.groups is not None:
            return search_channels(
                self.model, self.groups, self.train, self.selection, self.source_accuracy, self.settings,
                self.checkpoint, self.measure, self.layer_costs, self.class_weights,
            )  # fmt: skip
        return search(
            self.model, self.train, self.selection, self.source_accuracy, self.settings, self.checkpoint,
            self.layer_costs, self.distillation(), class_weights=self.class_weights, measure=self.measure,
        )  # fmt: skip

    def distillation(self) -> Distillation | None:
        """Return the distillation of a search with a budget, if it has one. The source model is copied as it is now."""
        share = (self.settings.budget or {}).get("distillation")
        if not share:
            return None
        outputs = source_outputs(self.problem, self.source_classes, self.data_classes)
        labels = self.problem.train.labels
        frequencies = [int((labels == number).sum()) for number in range(len(self.problem.classes))]
        if self.is_balanced:  # all classes count the same
            frequencies = [1] * len(frequencies)
        return Distillation(self.model.get_submodule("source"), outputs, frequencies, share)

    def loss(self, label_smoothing: float = 0.0) -> Loss:
        """Return the loss of the search: cross entropy, weighted if the balanced accuracy decides."""
        return class_loss(self.class_weights, self.device, label_smoothing)

    def test_accuracies(self, name: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        """Return what metrics.json says of the accuracy of a model, which it calls `name`, and of the source model.

        logits: of the model [N, n]; labels [N]: of the test images. `source_restricted` is the accuracy of the source
        model with the target's classes alone to choose from; for a problem with a rest that is the same.
        """
        source_logits, source_classes = self.source_test
        accuracies: dict[str, Any] = {}
        for key, balanced, measure in (
            ("accuracy", False, evaluation.accuracy),
            ("balanced_accuracy", True, balanced_accuracy),
        ):
            source = source_accuracy(source_logits, labels, self.problem, source_classes, balanced=balanced)
            accuracies[key] = {"source": source[0], "source_restricted": source[1], name: measure(logits, labels)}
        return {**accuracies, "decided_by": "balanced_accuracy" if self.is_balanced else "accuracy"}

    def _test_metrics(self, model: Any) -> dict[str, Any]:
        """Return what metrics.json says of the test images. Raises UserError if the model has a single answer."""
        problem = self.problem
        logits, labels = predict(to_channels_last(model, self.device, self.size), self.test)
        source_logits, source_classes = self.source_test
        _, restricted = source_predictions(source_logits, problem, source_classes)
        matrices = {
            name: confusion_matrix(predictions, labels, len(problem.classes))
            for name, predictions in (("source", restricted), ("reengineered", logits.argmax(1)))
        }
        subject = f"The re-engineered model of the {self.names['problem']} problem {self.target}"
        remedy = "give the search a larger budget or more epochs" if self.settings.budget else "lower alpha or lr_mask"
        advice = f"{remedy}, so that the search removes less, or add training images of the other classes."
        allowed = self.allow_one_answer
        require_several_answers(matrices["reengineered"], problem.classes, subject, advice, allowed=allowed)
        return {
            **self.test_accuracies("reengineered", logits, labels),
            "test_images": dict(self._by_class(np.bincount(self.problem.test.labels).tolist())),
            "per_class": {name: class_metrics(matrix, problem.classes) for name, matrix in matrices.items()},
            "confusion": matrices,
        }

    def save_model(
        self,
        bits: Mapping[str, torch.Tensor],
        head: Mapping[str, torch.Tensor],
        shifts: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write masks.safetensors into the folder, from which `load_reengineered` loads the model.

        bits: {name: boolean mask}. head: the state of the head. shifts: of biases, if they were trained.
        """
        masks = {f"mask/{name}": packed for name, packed in pack_bits(dict(bits)).items()}
        masks |= {f"shift/{name}": shift for name, shift in (shifts or {}).items()}
        unmasked = sorted(maskable(self.model.get_submodule("source")).keys() - bits.keys())
        self._save_masks(masks, head, {"unmasked": unmasked})

    def _save_masks(
        self, tensors: Mapping[str, torch.Tensor], head: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
    ) -> None:
        save_tensors(
            self.folder / "masks.safetensors",
            {**tensors, **{f"head/{name}": value for name, value in head.items()}},
            {
                "source": os.path.relpath(self.model_folder, self.folder),
                "source_sha256": self.provenance["source model"],
                "classes": self.problem.classes,
                **metadata,
            },
        )

    def save(self, result: SearchResult) -> dict[str, Any]:
        """Write masks.safetensors, history.csv and metrics.json into the folder; return the metrics."""
        import pandas as pd  # a quarter of a second, for which the first step need not wait

        folder, problem = self.folder, self.problem
        if self.groups is None:
            self.save_model(result.bits, result.head, result.shifts)
            count = sum(bits.numel() for bits in result.bits.values())
            kept = sum(int(bits.sum()) for bits in result.bits.values())
        else:
            count, kept = self._save_without_channels(result, self.groups)
        write_csv(folder / "history.csv", pd.DataFrame(result.history))
        # The metrics are those of the stored model, so it is read back from its folder.
        tested = self._test_metrics(load_reengineered(folder, architecture=self.architecture, recovered=False))
        row = result.history[result.selected_epoch - 1]
        holdout = {"source": self.source_accuracy, "reengineered": row["accuracy"]} if self.uses_holdout else None
        metrics = {
            **self.names,
            "classes": list(problem.classes),
            **({"members": list(problem.members)} if problem.kind == "group" else {}),
            "seed": self.seed,
            "settings": self.settings.recorded(),
            "images": {"train": len(problem.train), "holdout": len(problem.holdout), "test": len(problem.test)},
            **tested,
            "holdout_accuracy": holdout,
            "retention": kept / count,
            "weights": count,
            "kept": kept,
            **({} if result.budget is None else {"budget": result.budget}),
            **({} if self.groups is None else self._removed_branches(result, self.groups)),
            "epochs": len(result.history),
            "selected_epoch": result.selected_epoch,
            "seconds": sum(row["seconds"] for row in result.history),  # of all processes, if it was interrupted
            **environment(self.device),
        }
        write_json(folder / "metrics.json", metrics)
        decisive = tested[tested["decided_by"]]
        log.info(
            "test %s %.4f (source %.4f), retention %.4f",
            tested["decided_by"].replace("_", " "), decisive["reengineered"], decisive["source"], metrics["retention"],
        )  # fmt: skip
        if kept == count and result.budget is None:
            log.warning("no weight was removed: give the search more epochs, or a higher alpha or lr_mask")
        return metrics

    def _removed_branches(self, result: SearchResult, groups: ChannelGroups) -> dict[str, Any]:
        """Return the entry of the metrics about branches, if the search could remove any."""
        return (
            {"branches_removed": groups.removed_branches(result.bits)}
            if self.settings.of_channels.branches and groups.branches
            else {}
        )

    def _save_without_channels(self, result: SearchResult, groups: ChannelGroups) -> tuple[int, int]:
        """Write masks.safetensors of a search of channels; return the numbers of weights before and after it.

        Raises UserError if the outputs change when the channels that are not kept are removed.
        """
        network = open_source(self.model_folder, architecture=self.architecture).module
        if result.weights is not None:
            network.load_state_dict(with_versions(result.weights, network.state_dict()))
        bits, images = groups.joined(result.bits), next(iter(self.selection))[0][:64].cpu().contiguous()
        require_exact_removal(network, groups, bits, images)
        unused = unused_parameters(network, images)
        count = sum(parameter.numel() for parameter in maskable(network, unused).values())
        shrink(network, groups, bits)
        kept = sum(parameter.numel() for parameter in maskable(network, unused).values())
        self.save_channels(network if result.weights is not None else None, groups, bits, result.head)
        return count, kept

    def save_channels(
        self, network: nn.Module | None, groups: ChannelGroups, kept: torch.Tensor, head: Mapping[str, torch.Tensor]
    ) -> None:
        """Write masks.safetensors of a network without channels, from which `load_reengineered` loads the model.

        network: without the channels, if its weights are not those of the source model. kept: units, bool [units].
        head: the state of the head.
        """
        bits = groups.split(kept)
        gone, channels = groups.removed_branches(bits), groups.sizes.keys() - groups.branches.keys()
        widths = {name: f"{int(units.sum())}/{len(units)}" for name, units in bits.items() if name in channels}
        log.info("channels kept: %s", ", ".join(f"{name} {width}" for name, width in widths.items()))
        if gone:
            log.info("branches removed: %s", ", ".join(gone))
        bits = {name: bits[name] for name in (*widths, *gone)}  # of branches, those that are kept go without saying
        tensors = {f"channels/{name}": packed for name, packed in pack_bits(bits).items()}
        if network is not None:
            tensors |= {f"weight/{name}": value for name, value in copy_state(network).items()}
        self._save_masks(tensors, head, {"size": list(self.size)})
