"""`seam shrink`: the steps from a model and images to a delivered folder, by the procedures of the workflow.

The working folder has the layout of the workflow's results, so that equal settings give equal bytes. Each step is left
out if its result is there and belongs to the same inputs; an interrupted search resumes from its checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from seam.cost.export import export, onnx_metadata
from seam.data.batches import batches
from seam.data.drawing import draw_problem
from seam.data.kinds.imagefolder import listing_digest
from seam.data.kinds.registry import prepare_dataset
from seam.data.storage import Dataset, open_dataset
from seam.delivery.card import Card, counted, listed, percent
from seam.delivery.choices import KNOWN_NORMALIZATIONS, Choices, data_errors, option_words
from seam.delivery.package import C_FILES, write_package
from seam.device import select_device
from seam.errors import UserError, cannot_read
from seam.evaluation import FEWEST_OTHERS, accuracy, mistaken_by_one_answer, predict
from seam.files import json_digest, read_json, sha256, write_json
from seam.log import log
from seam.models.architectures import require_classifier
from seam.models.published import fetch_weights
from seam.models.surgery import to_channels_last
from seam.models.weights import open_source
from seam.outputs import staged
from seam.reuse.cards import RECOVERY_FILES
from seam.settings import TIMES

FIT_IMAGES = 512  # on which normalizations are compared
EQUALLY_GOOD = 0.01  # share of images by which normalizations that are equally good may differ
FAR_BEHIND = 0.05  # share of images by which a normalization that is given may be behind the best one
FIT_BATCH = 64  # images that a model takes at once in measurements
TIMED: dict[str, Any] = {
    "batch_size": (1,), "threads": (1,), "warmup": 5, "iterations": 30, "runs": 2, "statistic": "median",
}  # fmt: skip

RESULTS = ("model.onnx", "model-int8.onnx", "macs.json", "latency_*.json", "accuracy_*.json")  # of `measure`

Say = Callable[[str], None]


class Shrinking:
    """The steps of one problem in a working folder."""

    def __init__(self, choices: Choices, work: str | Path, device: str = "auto", say: Say = log.info) -> None:
        """work: the working folder, which keeps what an interrupted run has done. say: tells what happens."""
        self.choices, self.work, self.device, self.say = choices, Path(work), device, say
        self.data_folder = self.work / "datasets" / choices.dataset
        self.model_folder = self.work / "models" / choices.model
        self.folder = self.work / "direct" / choices.model / choices.problem / choices.target
        self.checkpoint = self.work / "checkpoints" / f"{choices.model}-{choices.problem}-{choices.target}.pt"

    # ------------------------------------------------------------------ the steps

    def prepare_data(self) -> Dataset:
        """Decode the images into the working folder, unless they are there; return the data set."""
        entry = self.choices.entry
        with data_errors():
            key = {"entry": entry, "files": listing_digest(entry["root"])}
        if not self._is_done("data", key, self.data_folder / "dataset.json"):
            self.say(f"preparing the images of {entry['root']} at {entry['size']} px")
            with data_errors():
                prepare_dataset(entry, self.data_folder, self.work / "cache")
            self._note("data", key)
        return open_dataset(self.data_folder)

    def fetch_source(self, data: Dataset) -> str:
        """Bring the source model into the working folder; return how its normalization was found, in words."""
        path = self.model_folder / "source.safetensors"
        source, given = dict(self.choices.source), self.choices.source["normalization"]
        files = [
            part for part in (source["weights"], source["architecture"].rpartition(":")[0]) if os.path.isfile(part)
        ]
        digests = {}
        for file in files:
            try:
                digests[file] = sha256(file)
            except OSError as error:
                raise cannot_read(file, error) from error
        key = {"source": dict(source), "files": digests, **self._images}
        if self._is_done("source", key, path):
            done = self._steps()["source"]
            words, doubt = str(done["words"]), done.get("doubt")
        else:
            self.say(f"reading the weights {source['weights']}")
            words, doubt = "that of the published weights", None
            if given or os.path.isfile(source["weights"]):  # published weights bring their own
                any_fit = [list(values) for values in KNOWN_NORMALIZATIONS["imagenet"]]
                self._fetch({**source, "normalization": given or any_fit}, path)
                source["normalization"], words, doubt = self._fit_normalization(data, given)
            if not given:
                self._fetch(source, path)
            self._note("source", key, words=words, doubt=doubt)
        if doubt:
            log.warning("%s", doubt)
        return words

    def check_export(self, data: Dataset, to_c: bool = False) -> None:
        """Export the source model to ONNX, so that an architecture that cannot be exported fails before the search.

        to_c: whether the result is to be written as C code, too. Raises UserError if that is not possible.
        """
        path = self.model_folder / "model.onnx"
        key = {"source": sha256(self.model_folder / "source.safetensors"), "size": list(data.size)}
        if not self._is_done("export", key, path):
            source = open_source(self.model_folder, architecture=self.choices.architecture)
            require_classifier(source.module, len(source.classes), data.size, "The source model")
            export(source.module, path, (3, *data.size), metadata=onnx_metadata(source.classes, source.normalization))
            self._note("export", key)
        if to_c:
            from seam.engine.emit import require_operations

            with _c_errors():
                require_operations(path)

    def class_sizes(self, images: Dataset) -> list[int]:
        """Return the number of training images of each class of the problem, those that are held out among them.

        Raises UserError if a class has none.
        """
        choices = self.choices
        problem = draw_problem(
            images, choices.dataset, choices.problem, choices.target, choices.keep, choices.seed, holdout=0.0
        )
        return np.bincount(problem.train.labels).tolist()

    def search(self) -> dict[str, Any]:
        """Search the masks, unless they are there; return the metrics.

        If a recovery follows, the result may give one answer for all images: what comes of it is judged at the end.
        """
        from seam.reuse.direct import reengineer_all

        arguments = {**self._arguments(), "settings": self.choices.settings, **self._layer_costs()}
        key = self._key(arguments)
        may_be_constant = bool(self.choices.recovery)
        is_done = self._is_done("search", key, self.folder / "metrics.json")
        if is_done and not may_be_constant:  # as it may be since a run with a recovery
            confusion = read_json(self.folder / "metrics.json")["confusion"]["reengineered"]
            is_done = mistaken_by_one_answer(confusion) < FEWEST_OTHERS
        if not is_done:
            for stale in self.folder.glob("*") if self.folder.is_dir() else ():  # of other settings
                stale.unlink() if stale.is_file() else shutil.rmtree(stale)
            outputs = [self.folder / name for name in ("masks.safetensors", "history.csv", "metrics.json")]
            with staged(outputs) as staging:
                places = {"folder": staging(outputs[0]).parent, "checkpoint": str(self.checkpoint)}
                places["allow_one_answer"] = may_be_constant
                reengineer_all([{**arguments, **places}], self.device)
            self._note("search", key)
        return read_json(self.folder / "metrics.json")

    def recover(self) -> None:
        """Train what the search has left, if that is asked for and not done."""
        outputs = [self.folder / name for name in RECOVERY_FILES]
        settings = self.choices.recovery
        if not settings:
            if outputs[0].is_file():
                self._remove(*RESULTS, *RECOVERY_FILES)
            return
        from seam.reuse.recovery import recover

        arguments = {**self._arguments(), "settings": settings, "masks_folder": str(self.folder)}
        key = {**self._key(arguments), "masks": sha256(self.folder / "masks.safetensors")}
        if self._is_done("recovery", key, outputs[0]):
            return
        self.say(f"recovery: {counted(settings['epochs'], 'epoch')}")
        self._remove(*RESULTS)  # of the model before it
        with staged(outputs) as staging:
            checkpoint = self.checkpoint.with_name(f"recover-{self.checkpoint.name}")
            recover(folder=staging(outputs[0]).parent, device=self.device, checkpoint=checkpoint, **arguments)
        self._note("recovery", key)

    def measure(
        self, data: Dataset, engines: tuple[str, ...], int8: bool = False, instructions: str | None = None
    ) -> None:
        """Count the MACs, export to ONNX, and time both models in the engines, into the result folder.

        int8: whether to quantize both models, too. instructions: what the C code is for, as `seam.engine.emit` takes
        it; None: no C code. Raises UserError if the model cannot be written as C code.
        """
        from seam.cost.accuracy import write_accuracy
        from seam.cost.calibration import quantize_reengineered, quantize_source
        from seam.cost.engines import ENGINES
        from seam.cost.latency import time_models
        from seam.cost.macs import write_macs
        from seam.cost.runners.registry import find_engine
        from seam.reuse.load import load_reengineered

        source = open_source(self.model_folder, architecture=self.choices.architecture)
        model = load_reengineered(self.folder, self.model_folder, self.choices.architecture)
        shape = (3, *data.size)
        write_macs(self.folder / "macs.json", source.module, model, shape, self.folder / "masks.safetensors")
        if not (self.folder / "model.onnx").is_file():
            metadata = onnx_metadata(model.classes, model.normalization)
            export(model, self.folder / "model.onnx", shape, metadata=metadata)
        self._write_c(instructions)
        engine = "onnxruntime-int8"
        path = self.folder / f"accuracy_{engine}.json"  # the last file of these
        if int8 and not path.is_file():
            self.say("quantizing to int8")
            seed, onnx, quantized = self.choices.seed, "model.onnx", "model-int8.onnx"
            quantize_source(self.model_folder / onnx, self.model_folder / quantized, self.data_folder, seed)
            files = self.folder / onnx, self.folder / quantized, self.data_folder, self.folder / "metrics.json"
            quantize_reengineered(*files)
            models = {"source": str(self.model_folder / quantized), "reengineered": str(self.folder / quantized)}
            write_accuracy(path, engine, find_engine(engine), models, self.data_folder, self.folder / "metrics.json")
        if not int8:
            self._remove("model-int8.onnx", "accuracy_*.json")
        self._remove("latency_*.json")
        for engine in engines:
            facts = ENGINES[engine]
            folders = {"source": self.model_folder, "reengineered": self.folder}
            paths = {name: folder / facts.model for name, folder in folders.items()}
            self.say(f"timing in {engine}")
            options: dict[str, Any] = {"gains_from_zeros": facts.gains_from_zeros, "exact": not facts.int8}
            try:
                latency = time_models(engine, find_engine(engine), paths, 1, **TIMED, **options)
                write_json(self.folder / f"latency_{engine}.json", latency)
            except UserError as error:
                self.say(f"not timed in {engine}: {error}")

    def deliver(self, out: str | Path, about: Mapping[str, Any]) -> Card:
        """Write the delivered folder; return its card."""
        choices = self.choices
        return write_package(
            self.folder, self.data_folder, out, source_folder=self.model_folder, architecture=choices.architecture,
            about={"weights": Path(choices.source["weights"]).name, **about}, with_c=True,
        )  # fmt: skip

    # ------------------------------------------------------------------ helpers

    def _remove(self, *patterns: str) -> None:
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            path.unlink()

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments that a search and a recovery share."""
        choices = self.choices
        return {
            "model_folder": str(self.model_folder),
            "dataset_folder": str(self.data_folder),
            "model": choices.model,
            "dataset": choices.dataset,
            "problem": choices.problem,
            "target": choices.target,
            "members": choices.keep,
            "seed": choices.seed,
            "architecture": choices.architecture,
        }

    def _key(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a search or a recovery depends on: its arguments, and the digests of the files that it reads."""
        paths = ("model_folder", "dataset_folder", "masks_folder", "layer_costs")
        files = {"source": self.model_folder / "source.safetensors"}
        values = {name: value for name, value in arguments.items() if name not in paths}
        values["threads"] = torch.get_num_threads()  # sums round otherwise with another number
        return {**values, **{name: sha256(path) for name, path in files.items()}, **self._images}

    @cached_property
    def _images(self) -> dict[str, Any]:
        """What tells prepared images apart: the manifest, and a digest of the files if the images stay in them."""
        key = {"manifest": sha256(self.data_folder / "dataset.json")}
        if open_dataset(self.data_folder).train.files is None:
            return key
        with data_errors():
            return {**key, "files": listing_digest(self.choices.entry["root"])}

    def _layer_costs(self) -> dict[str, str]:
        """Return {"layer_costs": the path of the table} for a budget of time; measure it if it is missing."""
        budget = self.choices.settings.get("budget") or {}
        if not (any(unit in budget for unit in TIMES) or self.choices.settings.get("penalty") == "latency"):
            return {}
        channels, size = self.choices.settings.get("channels"), open_dataset(self.data_folder).size
        engine = latency_engine(self.choices.settings)
        path = self.model_folder / f"{'channel' if channels else 'layer'}_costs.json"
        key = {"source": sha256(self.model_folder / "source.safetensors"), "size": list(size)}
        key |= {"multiple": channels["multiple"]} if channels else {}
        if not self._is_done(path.stem, key, path):
            self.say(f"measuring what each layer takes in {engine}")
            module = open_source(self.model_folder, architecture=self.choices.architecture).module
            if channels:
                from seam.cost.channel_costs import write_channel_costs
                from seam.cost.runners.registry import find_engine

                write_channel_costs(path, module, (3, *size), 1, channels["multiple"], engine, find_engine(engine))
            else:
                from seam.cost.layer_costs import write_layer_costs

                write_layer_costs(path, module, (3, *size), 1)
            self._note(path.stem, key)
        return {"layer_costs": str(path)}

    def _write_c(self, instructions: str | None) -> None:
        """Write the model as C code into the result folder, or remove what is there."""
        self._remove(*C_FILES)
        if instructions is None:
            return
        from seam.engine.emit import emit

        with _c_errors():
            emit(self.folder / "model.onnx", self.folder, "model", instructions=instructions)

    def _fetch(self, source: dict[str, Any], path: Path) -> None:
        try:
            with staged([path]) as staging:
                fetch_weights(path=staging(path), cache=self.work / "cache" / "weights", **source)
        except UserError as error:
            raise option_words(error) from error

    def _fit_normalization(
        self, data: Dataset, given: list[list[float]] | None
    ) -> tuple[list[list[float]], str, str | None]:
        """Return (normalization, how it was found, what is doubtful about it or None).

        Without one that is `given`, it is the one that fits the source model best, as `choose_fit` says. Normalizations
        that are published for such models are compared, and the statistics of the images, on training images only.
        Raises UserError if the source model hardly does better than guessing with any of them, unless one is given.
        """
        candidates = {name: [list(mean), list(std)] for name, (mean, std) in KNOWN_NORMALIZATIONS.items()}
        candidates["the data's"] = [list(data.mean), list(data.std)]
        stated = next((name for name, values in candidates.items() if values == given), "the given one")
        if given:
            candidates[stated] = given
        scores, losses, count, outputs = self._compare_normalizations(data, candidates)
        best = choose_fit(scores, losses)
        images = counted(count, "training image")
        doubt = None
        guessing = 1 / outputs
        if scores[best] <= guessing + min(guessing / 2, 3 * math.sqrt(guessing * (1 - guessing) / count)):
            doubt = (
                f"The source model gets {percent(scores[best])} of {images} right at {data.size[0]} px, hardly more "
                "than by guessing: check --size, the names of its outputs in their order (--classes) and "
                "--normalization."
            )
            if not given:
                raise UserError(doubt)
        elif given and scores[stated] < scores[best] - FAR_BEHIND:
            doubt = (
                f"with the given --normalization, the source model gets {percent(scores[stated])} of {images} right, "
                f"and {percent(scores[best])} with another one ({best}): correct it, or leave it out to take the one "
                "that fits best"
            )
        if given:
            return given, "as given", doubt
        ranking = sorted(scores, key=lambda name: (-scores[name], losses[name]))
        compared = ", ".join(f"{name} {percent(scores[name])}" for name in ranking[:3])
        words = f"{best}, found by fit on {images} ({compared}"
        if len(close := equally_good(scores)) > 1:
            words += f"; {listed(close)} are within one point, and of these its loss is the least"
        return candidates[best], f"{words}); --normalization sets it", None

    def _compare_normalizations(
        self, data: Dataset, candidates: Mapping[str, list[list[float]]]
    ) -> tuple[dict[str, float], dict[str, float], int, int]:
        """Return ({name: accuracy}, {name: loss}, number of images, number of outputs) of the source model.

        The images are some of those for training, normalised by each of the candidates {name: (mean, std)}.
        """
        source = open_source(self.model_folder, architecture=self.choices.architecture)
        device = select_device(self.device)
        require_classifier(source.module, len(source.classes), data.size, "The source model")
        chosen = np.unique(np.linspace(0, len(data.train) - 1, min(FIT_IMAGES, len(data.train))).astype(np.int64))
        position = np.array([source.classes.index(name) for name in data.classes])
        labels = position[data.train.labels[chosen]]
        network = to_channels_last(source.module, device, data.size)
        scores, losses = {}, {}
        for name, normalization in candidates.items():
            images = batches(data.train, chosen, labels, FIT_BATCH, normalization=normalization, device=device)
            logits, right = predict(network, images)
            scores[name] = accuracy(logits, right)
            losses[name] = float(nn.functional.cross_entropy(logits.double(), right))
        return scores, losses, len(chosen), len(source.classes)

    def _is_done(self, step: str, key: Mapping[str, Any], output: Path) -> bool:
        """Return whether the result of a step is there and belongs to `key`.

        If not, the step is forgotten: until it is noted again, what an interrupted run leaves belongs to no key.
        """
        steps = self._steps()
        if output.is_file() and steps.get(step, {}).get("key") == json_digest(dict(key)):
            return True
        if steps.pop(step, None):
            write_json(self.work / "steps.json", steps)
        return False

    def _note(self, step: str, key: Mapping[str, Any], **more: Any) -> None:
        write_json(self.work / "steps.json", {**self._steps(), step: {"key": json_digest(dict(key)), **more}})

    def _steps(self) -> dict[str, Any]:
        path = self.work / "steps.json"
        return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def _c_errors() -> Iterator[None]:
    """Put errors of writing C code into the words of the command line."""
    from seam.engine.errors import EngineError

    try:
        yield
    except EngineError as error:
        words = str(error)
        if words.startswith("Cannot compile"):  # what is wrong is the model
            words = f"{words.rstrip('.')}: leave --c out."
        raise UserError(f"--c: {words}") from error


def choose_fit(accuracies: Mapping[str, float], losses: Mapping[str, float]) -> str:
    """Return the name of the highest accuracy; of those that are equally good, the one of least loss.

    >>> choose_fit({"imagenet": 0.998, "cifar10": 0.996, "none": 0.7}, {"imagenet": 0.02, "cifar10": 0.01, "none": 0})
    'cifar10'
    """
    return min(equally_good(accuracies), key=lambda name: losses[name])


def equally_good(accuracies: Mapping[str, float]) -> list[str]:
    """Return the names whose accuracy is at most 0.01 below the highest one."""
    return [name for name in accuracies if accuracies[name] >= max(accuracies.values()) - EQUALLY_GOOD]


def require_engines(engines: tuple[str, ...], int8: bool) -> None:
    """Raise UserError if one of the engines that are to time the models is unknown, or needs a model in int8."""
    from seam.cost.engines import ENGINES

    for engine in engines:
        if engine not in ENGINES:
            raise UserError(f"--time {engine} is no engine: choose among {', '.join(ENGINES)}, or none.")
        if ENGINES[engine].int8 and not int8:
            raise UserError(f"--time {engine} needs a model in int8: add --int8.")


def latency_engine(settings: Mapping[str, Any]) -> str:
    """Return the engine that a budget of time is for, as the workflow takes it by default."""
    return "onnxruntime" if settings.get("granularity") == "channel" else "seam"
