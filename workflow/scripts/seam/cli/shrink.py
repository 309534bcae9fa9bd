"""Shrink a trained model to the classes that you need, and write a folder that you can ship.

  seam shrink resnet20 --weights cifar10.pth --classes cifar10 --data photos/ --keep cat,dog
  seam shrink resnet50 --data photos/ --keep tabby --budget "25% macs"
  seam shrink my_models.py:build --weights best.ckpt --classes names.txt --data photos/ --keep cat

MODEL is resnet20, vgg16_bn, a classifier of torchvision or timm (timm:NAME), or a function in a file of yours, whose
code runs. The images are a folder with train/CLASS and test/CLASS (or val/CLASS), a folder with CLASS alone (it is
split), a CSV file with the columns path and label, or torchvision:NAME or hf:NAME. With one class in --keep, the model
answers "this class, or something else"; with several, which of them an image shows.

By default single weights become zero, which seam.engine skips. With --granularity channel, whole channels are removed,
so that the model is smaller and faster in every engine; its default budget is half of the multiply-accumulates (MACs).

Interrupt it with Ctrl-C; the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seam.delivery.card import Card

NAME = "shrink"
HELP = "shrink a model to the classes that you need, and write a folder to ship"
BUDGETS = {"weight": "25%", "channel": "50% macs"}  # by granularity, if none is given
INSTRUCTIONS = ("portable", "avx2", "avx512", "neon")  # that C code can be for
EXIT_WORSE = 3
STOPPED = "Stopped; the same command resumes."


WEIGHTS = "a file of weights, or the name of torchvision's (its default)"


def add_model_arguments(parser: argparse.ArgumentParser, weights: str = WEIGHTS) -> None:
    """Add the arguments that say which model it is. weights: the help for --weights."""
    parser.add_argument(
        "model", metavar="MODEL", help="resnet20, vgg16_bn, a classifier of torchvision, timm:NAME, or file.py:function"
    )
    parser.add_argument("--weights", metavar="W", help=weights)
    parser.add_argument(
        "--weights-key", metavar="KEY", help="where the weights are in a file that has several: state_dict_ema"
    )
    parser.add_argument(
        "--classes",
        metavar="C",
        help="names of the model's outputs: a list, a file, cifar10, cifar100, imagenet, weights",
    )
    parser.add_argument(
        "--size", type=int, metavar="PX", help="height and width of the images (default: the model's own)"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    add_model_arguments(parser)
    parser.add_argument(
        "--data", required=True, metavar="D", help="the images: a folder, a CSV file, torchvision:NAME or hf:NAME"
    )
    parser.add_argument("--keep", required=True, metavar="CLASSES", help="the classes to keep, separated by commas")
    parser.add_argument(
        "--problem",
        help="binary, group (against the rest), multiclass or multiclass_rest (default: by the number of classes)",
    )
    parser.add_argument(
        "--granularity",
        choices=tuple(BUDGETS),
        default="weight",
        help="what is removed: single weights (default), or channels, which suits every engine",
    )
    parser.add_argument(
        "--budget",
        metavar="B",
        help="25%% of the weights (default), '25%% macs', '10M macs', '5 ms', or none; for channels '50%% macs'",
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="epochs of the search (default: 30 with a budget, else 20)"
    )
    parser.add_argument(
        "--search", action="append", default=[], metavar="NAME=VALUE", help="any setting of the search: alpha=2.0"
    )
    parser.add_argument(
        "--recovery",
        metavar="N",
        help="epochs that train what is left after the search (default: 45 with a budget), none; or epochs=8,lr=0.0005",
    )
    parser.add_argument(
        "--normalization",
        metavar="N",
        help="imagenet, cifar10, cifar100, half, none or mean/std (default: found by fit)",
    )
    parser.add_argument("--augmentation", metavar="A", help="crop,flip,resized-crop or none (default: by the size)")
    parser.add_argument(
        "--test-share", type=float, metavar="S", help="share of unsplit images that is for testing (default 0.2)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: shrunk/MODEL-CLASSES)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="the working folder (default: DIR.work)")
    parser.add_argument("--seed", type=int, default=0, help="the source of every random choice (default 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, on which results depend (default 1)")
    parser.add_argument(
        "--time",
        metavar="E",
        help="engines that time both models, or none (default onnxruntime, seam unless channels are removed, and "
        "onnxruntime-int8 with --int8)",
    )
    parser.add_argument("--int8", action="store_true", help="add a model with weights and activations of 8 bits")
    parser.add_argument(
        "--c",
        nargs="?",
        const=INSTRUCTIONS[0],
        choices=INSTRUCTIONS,
        help="add the model as C code without dependencies, for any processor or one with these instructions",
    )
    parser.add_argument("--licence", metavar="L", help="the licence of the source model, for the card")
    parser.add_argument("--data-licence", metavar="L", help="the licence of the images, for the card")
    parser.add_argument(
        "--lose",
        type=float,
        default=2.0,
        metavar="P",
        help="points of accuracy that may be lost (default 2): else exit code 3",
    )
    parser.add_argument("--json", action="store_true", help="print the card as JSON alone")
    parser.add_argument("--quiet", action="store_true", help="show warnings and the summary alone")


def run(options: argparse.Namespace) -> int:
    """Shrink the model; print the summary; return the exit code."""
    from seam.cli.folders import own_folder, require_outside, work_folder
    from seam.cli.progress import hide_log, show_log
    from seam.delivery.card import counted
    from seam.delivery.choices import RECOVERY, make_choices, parse_budget, recovery_choice, search_choice
    from seam.delivery.fetching import image_folder
    from seam.delivery.replacing import alone, free_folder
    from seam.delivery.shrinking import Shrinking, require_engines
    from seam.device import select_device
    from seam.errors import UserError, printable
    from seam.memory import use_threads
    from seam.reuse.cards import WORK, is_delivered
    from seam.settings import SearchSettings, for_few_images

    keep = [name.strip() for name in options.keep.split(",") if name.strip()]
    if not keep:
        raise UserError("--keep names no class: give the classes to keep, separated by commas.")
    given = BUDGETS[options.granularity] if options.budget is None else options.budget
    budget = None if given == "none" else parse_budget(given)
    # seam.engine leaves networks without zeros to ONNX Runtime, so that its times would be the same.
    timed = "onnxruntime" if options.granularity == "channel" else "onnxruntime,seam"
    if options.int8:
        timed += ",onnxruntime-int8"
    if options.time is not None:
        timed = options.time
    engines = () if timed == "none" else tuple(timed.split(","))
    require_engines(engines, options.int8)
    augmentation = None
    if options.augmentation is not None:
        augmentation = [each.strip() for each in options.augmentation.split(",")]
        augmentation = [] if augmentation == ["none"] else augmentation
    data = image_folder(options.data)
    choices = make_choices(
        options.model, data, keep, weights=options.weights, weights_key=options.weights_key, classes=options.classes,
        problem=options.problem, size=options.size, normalization=options.normalization, augmentation=augmentation,
        test_share=options.test_share, seed=options.seed,
    )  # fmt: skip
    choices.recovery = recovery_choice(options.recovery)
    wanted = SearchSettings(**search_choice(1, budget, options.epochs, options.search, options.granularity))
    out = own_folder(options.out or Path("shrunk") / f"{choices.model}-{choices.target}")
    work = work_folder(options.work or out.with_name(f"{out.name}{WORK}"), out)
    require_outside({"--out": out, "--work": work}, data)
    select_device(options.device)  # one that is missing is told at once
    work.mkdir(parents=True, exist_ok=True)
    locked = contextlib.ExitStack()
    locked.enter_context(alone(work, "works in"))  # two runs would take each other's masks
    progress = show_log(str(work / "log.txt"), options.quiet or options.json)

    def say(text: str) -> None:
        progress.close_line()
        if not (options.quiet or options.json):
            print(printable(text), file=sys.stderr, flush=True)

    warnings.filterwarnings("ignore", category=FutureWarning)  # of packages, which a user cannot do anything about
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        use_threads(options.threads)
        for note in choices.notes:
            say(note)
        if is_delivered(out):
            say(f"{out} holds a finished model: it moves to {free_folder(out)} if this run makes another one")
        shrinking = Shrinking(choices, work, options.device, say)
        images = shrinking.prepare_data()
        say(f"normalization: {shrinking.fetch_source(images)}")
        shrinking.check_export(images, to_c=options.c is not None)
        sizes = shrinking.class_sizes(images)
        fewest, count = min(sizes), round((1 - wanted.holdout) * sum(sizes))
        few = fewest <= wanted.few_images
        if few and options.granularity == "weight":
            if options.budget is None:
                budget = None
                say(
                    f"the smallest class has {counted(fewest, 'training image')}, too few for a budget: the search "
                    "keeps what holds the accuracy (--budget sets one)"
                )
            elif budget is not None:
                images_of_it = counted(fewest, "training image")
                say(f"! the smallest class has {images_of_it}: without --budget the result is more accurate")
        choices.settings = search_choice(count, budget, options.epochs, options.search, options.granularity, few)
        if few:
            require_effect(choices.settings, fewest, options.epochs, options.search)
        if options.recovery is None and budget is not None and not few:
            choices.recovery = recovery_choice(RECOVERY)
        epochs = for_few_images(SearchSettings(**choices.settings), fewest).epochs
        say(f"searching {choices.problem} {choices.target}: {epochs} epochs of about {counted(count, 'image')}")
        shrinking.search()
        progress.close_line()
        shrinking.recover()
        progress.close_line()
        shrinking.measure(images, engines, options.int8, options.c)
        say("writing the folder")
        about = {"licence": options.licence, "data_licence": options.data_licence, "data": Path(options.data).name}
        card = shrinking.deliver(out, about)
    finally:
        progress.close_line()
        hide_log()
        locked.close()
    verdict = judge(card, options.lose)
    if options.json:
        print(json.dumps({**card, "folder": str(out), "exit_code": EXIT_WORSE if verdict else 0}, indent=2))
    else:
        print(printable("\n".join(summary(card, verdict, out, work))))
    return EXIT_WORSE if verdict else 0


def has_few_images(card: Card) -> bool:
    """Return whether the search took the settings for few images."""
    return card["settings"].get("initial_head") == "source" and card["selection"] == "last"


def require_effect(settings: Mapping[str, Any], fewest: int, epochs: int | None, search: list[str]) -> None:
    """Raise UserError if a given option is none that a search takes whose smallest class has `fewest` images.

    settings: of the search, with what is given. epochs, search: as they are given.
    """
    from seam.errors import UserError
    from seam.settings import SearchSettings, for_few_images

    wanted = SearchSettings(**settings)
    taken = for_few_images(wanted, fewest)
    given = {text.partition("=")[0]: f"--search {text}" for text in search}
    given |= {"epochs": f"--epochs {epochs}"} if epochs else {}
    options = [words for name, words in given.items() if getattr(taken, name, None) != getattr(wanted, name, None)]
    if options:
        raise UserError(
            f"{options[0]} has no effect with so few images, for which the search has settings of its own: leave it "
            "out, or add --search few_images=0."
        )


def judge(card: Card, lose: float) -> list[str]:
    """Return what is worse than asked for, a sentence each: the accuracy, the budget."""
    from seam.delivery.card import counted, is_balanced, lost_points, percent
    from seam.delivery.shrinking import latency_engine
    from seam.report.intervals import wilson

    sentences = []
    lost, images = lost_points(card), counted(card["images"]["test"], "test image")
    budget = card.get("budget")
    advice = "A larger --budget or more --epochs can help."
    if not budget:
        advice = "A smaller --search alpha or more --epochs can help."
    elif budget["limit"] >= 1:
        advice = "More --epochs can help."
    if has_few_images(card):
        advice = "More training images of the small classes can help."
    if lost > lose and is_balanced(card):
        sentences.append(
            f"The result is {lost:.1f} points worse than the source model in balanced accuracy, the mean of the "
            f"classes, on {images}. {advice}"
        )
    elif lost > lose:
        low, high = wilson(card["accuracy"]["reengineered"], card["images"]["test"])
        sentences.append(
            f"The result is {lost:.1f} points less accurate than the source model on {images} "
            f"(95 % interval of the result: {percent(low)} to {percent(high)}). {advice}"
        )
    allowed = card["settings"].get("budget") or {}
    engine = latency_engine(card["settings"])
    taken = [each["reengineered_ms"] for each in card["latency"] if each["engine"] == engine]
    source = [each["source_ms"] for each in card["latency"] if each["engine"] == engine]
    limit = allowed.get("latency_ms")
    if "latency" in allowed and source:
        limit = allowed["latency"] * source[0]
    if limit is not None and taken and taken[0] > 1.05 * limit:
        sentences.append(
            f"The result takes {taken[0]:.3g} ms in {engine}, and the budget is {limit:.3g} ms. Times differ from run "
            "to run: give a smaller --budget if it matters."
        )
    if budget and not budget["met"]:
        sentences.append(
            f"The budget is not met: it allows {percent(budget['limit'])} of the source model's cost, and the result "
            f"costs {percent(budget['cost'])}. More --epochs can help."
        )
    return sentences


def summary(card: Card, verdict: list[str], out: Path, work: Path) -> list[str]:
    """Return the lines of the summary: what is worse first, then source and result side by side."""
    from seam.delivery.card import (
        DISTURBED_TIMES,
        counted,
        deciding_accuracy,
        has_channels_removed,
        is_balanced,
        kilobytes,
        listed,
        lost_points,
        millions,
        milliseconds,
        percent,
        timed_engine,
    )

    accuracy, size, images = card["accuracy"], card["size"], counted(card["images"]["test"], "test image")
    decided = deciding_accuracy(card)
    before, after = accuracy.get("before_recovery"), decided["reengineered"]
    rows = [("", "source model", "result")]
    rows.append((f"accuracy ({images})", percent(accuracy["source"], 2), percent(accuracy["reengineered"], 2)))
    if is_balanced(card):
        rows.append(("balanced accuracy", percent(decided["source"], 2), percent(after, 2)))
    if before is not None:
        rows.append(("  before recovery", "", percent(before, 2)))
    for name, value in accuracy["per_class"].items():
        rows.append((f"  {name} ({value['images']})", percent(value["source"], 2), percent(value["accuracy"], 2)))
    if accuracy.get("int8") is not None:
        rows.append(("accuracy in int8", "", percent(accuracy["int8"], 2)))
    rows.append(("weights", f"{size['weights']:,}", f"{size['kept']:,} ({percent(size['kept'] / size['weights'])})"))
    if size["source_onnx_bytes"]:
        rows.append(("model.onnx", kilobytes(size["source_onnx_bytes"]), kilobytes(size["bytes"]["model.onnx"])))
    if "model-int8.onnx" in size["bytes"]:
        rows.append(("model-int8.onnx", "", kilobytes(size["bytes"]["model-int8.onnx"])))
    if card["macs"]:
        source, result = card["macs"]["source"], card["macs"]["reengineered"]
        rows.append(("MACs", millions(source), f"{millions(result)} ({percent(result / source)})"))
    for entry in card["latency"]:
        rows.append(
            (
                f"{timed_engine(entry)}, {counted(entry['batch_size'], 'image')}",
                milliseconds(entry["source_ms"]),
                milliseconds(entry["reengineered_ms"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"! {sentence}" for sentence in verdict]
    if before is not None and after < before:
        lines.append(
            f"! The recovery made the result worse: {percent(before, 2)} before it, {percent(after, 2)} after it. The "
            "same command with --recovery none delivers the model before it; more epochs of recovery can help, too."
        )
    lost = lost_points(card)
    if not verdict and is_balanced(card) and lost:
        lines.append(f"The balanced accuracy of the result is {lost:.1f} points below that of the source model.")
    elif not verdict and lost:
        lines.append(f"The result is {lost:.1f} points less accurate than the source model.")
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if before is not None and after == before:
        lines.append("The recovery did not help: give --recovery more epochs, or none to leave it out.")
    if any(entry.get("disturbed") for entry in card["latency"]):
        lines.append(DISTURBED_TIMES)
    if card["data"]["split_here"]:
        lines.append("The images were split here: if the source model was trained on them, its accuracy is too high.")
    if has_few_images(card) and size["kept"] > 0.5 * size["weights"]:
        lines.append("With few images, little can be removed at a small loss: more images let the search remove more.")
    if reasons := [entry["fallback"] for entry in card["latency"] if entry.get("fallback")]:
        lines.append(f"{reasons[0]} ONNX Runtime ran it instead, which does not skip zeros.")
    times = [entry for entry in card["latency"] if not entry.get("fallback")]
    idle = list(dict.fromkeys(entry["engine"] for entry in times if not entry["gains_from_zeros"]))
    if idle and not has_channels_removed(card):
        gain = "gains" if len(idle) == 1 else "gain"
        lines.append(
            f"{listed(idle)} {gain} nothing from weights that are zero: seam.engine skips them, and --granularity "
            "channel makes a model that is smaller and faster in every engine."
        )
    lines.append(f"{out} holds the model, its card and a program for each runtime: copy it anywhere.")
    lines.append(f"{work} is needed only to resume or repeat: delete it when you like.")
    return lines
