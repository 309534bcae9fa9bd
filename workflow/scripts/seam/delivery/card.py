"""The card of a delivered model: what it is, how good it is, and what it is not made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seam.report.intervals import wilson

Card = dict[str, Any]


def limits(card: Card) -> list[str]:
    """Return sentences that say what the model is not made for, and what was not measured."""
    classes = card["classes"]
    lines = []
    if card["problem"]["kind"] == "binary":
        lines.append(
            f"It answers '{classes[0]}' or '{classes[1]}'. Test images had as many of each; where one is rare, "
            "more of the answers that name it are wrong."
        )
    elif card["problem"]["kind"] in ("group", "multiclass_rest"):
        lines.append(f"It answers {listed(classes, 'or')}; the last stands for all other classes of the data alone.")
    else:
        lines.append(
            f"It knows {listed(classes)} alone, and gives one of these names to any image, also to one of anything "
            "else."
        )
    low, high = wilson(card["accuracy"]["reengineered"], card["images"]["test"])
    lines.append(
        f"Its accuracy was measured on {card['images']['test']} test images of one data set: the 95 % interval is "
        f"{low:.1%} to {high:.1%}, and other cameras or places can differ by more."
    )
    if card["data"].get("split_here"):
        lines.append(
            "Training and test images were split for this search: if the source model was trained on them, its "
            "accuracy here is too high."
        )
    if is_balanced(card):
        counts = ", ".join(f"{value['images']} {name}" for name, value in card["accuracy"]["per_class"].items())
        lines.append(
            f"Classes have unequal numbers of images (for testing {counts}): look at the balanced accuracy, the mean "
            "of the classes. Where a class has few images, each counts much."
        )
    lines.append("Robustness, fairness and the certainty of its scores were not measured.")
    if card["selection"] == "test":
        lines.append("The epoch was selected on the test images, which flatters the accuracy.")
    if not card["latency"]:
        lines.append("Its latency was not measured.")
    elif any(entry.get("disturbed") for entry in card["latency"]):
        lines.append(f"{DISTURBED_TIMES} Measure it again on an idle machine.")
    return lines


def render_card(card: Card) -> str:
    """Return card.md, from the content of card.json."""
    card = _escaped(card)
    accuracy, size = card["accuracy"], card["size"]
    rows = [("accuracy on the problem", f"{accuracy['source']:.2%}", f"{accuracy['reengineered']:.2%}")]
    if is_balanced(card):
        balanced = accuracy["balanced"]
        rows.append(("balanced accuracy", f"{balanced['source']:.2%}", f"{balanced['reengineered']:.2%}"))
    if accuracy.get("before_recovery") is not None:
        rows.append(("the same before recovery", "", f"{accuracy['before_recovery']:.2%}"))
    kept = f"{size['kept']:,} ({size['kept'] / size['weights']:.1%})"
    rows.append(
        ("weights" if has_channels_removed(card) else "weights that are not zero", f"{size['weights']:,}", kept)
    )
    before = size.get("source_onnx_bytes")
    rows.append(
        ("size of model.onnx", "" if before is None else kilobytes(before), kilobytes(size["bytes"]["model.onnx"]))
    )
    if accuracy.get("int8") is not None:
        rows.append(("accuracy in int8", "", f"{accuracy['int8']:.2%}"))
    if macs := card.get("macs"):
        rows.append(("MACs for one image", f"{macs['source']:,}", f"{macs['reengineered']:,}"))
    for entry in card["latency"]:
        label = f"{timed_engine(entry)}, {counted(entry['batch_size'], 'image')}, {counted(entry['threads'], 'thread')}"
        rows.append((label, milliseconds(entry["source_ms"]), milliseconds(entry["reengineered_ms"])))
    table = ["| | source model | this model |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    verdict = ""
    if lost := lost_points(card):
        measure = "of balanced accuracy worse" if is_balanced(card) else "less accurate"
        verdict = f"**This model is {lost:.1f} points {measure} on the problem than its source model.**\n\n"
    lines = [
        f"| {name} | {value['images']} | {value['source']:.2%} | {value['accuracy']:.2%} |"
        for name, value in accuracy["per_class"].items()
    ]
    titles = ["", "| class | test images | source model | this model |", "| --- | --- | --- | --- |"]
    per_class = "\n".join([*titles, *lines, ""])
    steps, source, data = card["preprocessing"], card["source"], card["data"]
    settings = worded(card["settings"])
    method = METHODS[card.get("granularity", "weight")]
    if card.get("recovery"):
        method += ", then a recovery that trains what is left"
        settings += ". Recovery: " + worded(card["recovery"])
    crop, counts = steps["crop"], card["images"]
    preprocessing = (
        f"RGB, upright as EXIF says, the shorter side resized to {steps['resize']} px (bilinear), the central "
        f"{crop} x {crop} px, "
        f"values from 0 to 1, minus mean {steps['mean']}, divided by std {steps['std']}. Input `images` "
        f"[batch, 3, {crop}, {crop}], output `logits` [batch, {len(card['classes'])}] in the order of `labels.txt`."
    )
    images = f"{counts['train']} training, {counts['holdout']} held-out and {counts['test']} test images"
    files = "\n".join(f"- `{name}`: {meaning}" for name, meaning in card["files"].items())
    return f"""# {card["name"]}

{card["problem"]["sentence"]}

{verdict}{chr(10).join(table)}
{per_class}
## Use

{files}

Preprocessing: {preprocessing}

## Limits

{chr(10).join(f"- {line}" for line in card["limits"])}

## Origin

- Source model: {source["architecture"]}, weights {source["weights"]} (SHA-256 of the source model's file: \
{source["sha256"]}).
- Licence of the source model: {source["licence"]}.
- Data: {data["name"]}, {images}. Licence of the data: {data["licence"]}.
- Method: {method}. The result is epoch {card["selected_epoch"]} of {card["epochs"]}, {SELECTED[card["selection"]]}; \
seed {card["seed"]}.
- Hyper-parameters: {settings}.
- Versions: {", ".join(f"{name} {version}" for name, version in card["versions"].items())}.
"""


def _escaped(value: Any) -> Any:
    """Return a part of a card whose texts cannot end a cell of a table or begin HTML: names come from folders."""
    if isinstance(value, str):
        return " ".join(value.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").splitlines())
    if isinstance(value, Mapping):
        return {_escaped(name): _escaped(part) for name, part in value.items()}
    return [_escaped(part) for part in value] if isinstance(value, list) else value


DISTURBED_TIMES = "Other work on the machine disturbed the timing: the milliseconds are too long."
SELECTED = {"holdout": "selected on the held-out images", "last": "the last one", "test": "selected on the test images"}
METHODS = {
    "weight": "SeaM, a mask search (Qi et al., ICSE 2023)",
    "channel": "a search of the channels to keep and their removal, along the lines of SeaM (Qi et al., ICSE 2023)",
}


def is_balanced(card: Card) -> bool:
    """Return whether the balanced accuracy decides, because classes differ much in their number of images."""
    return card["accuracy"].get("decided_by") == "balanced_accuracy"


def deciding_accuracy(card: Card) -> dict[str, float]:
    """Return `source` and `reengineered` of the accuracy that decides, the balanced one or the plain one."""
    return card["accuracy"]["balanced"] if is_balanced(card) else card["accuracy"]


def has_channels_removed(card: Card) -> bool:
    """Return whether channels were removed, so that the model is smaller and dense, and not a network with zeros."""
    return card.get("granularity") == "channel"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Return names as a sentence lists them.

    >>> listed(["cat", "dog", "ox"]), listed(["cat"])
    ('cat, dog and ox', 'cat')
    """
    return f" {last} ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def timed_engine(entry: Mapping[str, Any]) -> str:
    """Return the engine of a measurement of the card, and that ONNX Runtime ran the model there if it did."""
    return f"{entry['engine']} (run by ONNX Runtime)" if entry.get("fallback") else entry["engine"]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, whose plural has an s at its end if it is not given.

    >>> counted(1, "image"), counted(1600, "image"), counted(2, "class", "classes")
    ('1 image', '1,600 images', '2 classes')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a percentage.

    >>> percent(0.9167), percent(0.9167, 2)
    ('91.7 %', '91.67 %')
    """
    return f"{100 * share:.{digits}f} %"


def worded(settings: Mapping[str, Any]) -> str:
    """Return settings as a sentence lists them, those without a value left out.

    >>> worded({"epochs": 30, "balance": None, "budget": {"macs": 0.5}})
    'epochs 30, budget (macs 0.5)'
    """
    words = {name: f"({worded(value)})" if isinstance(value, Mapping) else value for name, value in settings.items()}
    return ", ".join(f"{name} {value}" for name, value in words.items() if value is not None)


def kilobytes(size: int) -> str:
    """Return a number of bytes in kB.

    >>> kilobytes(1_094_812)
    '1,095 kB'
    """
    return f"{size / 1e3:,.0f} kB"


def millions(value: float) -> str:
    """Return a number in millions, with three digits at least.

    >>> millions(41_213_440), millions(134_400)
    ('41.2 M', '0.134 M')
    """
    return f"{value / 1e6:,.1f} M" if value >= 1e7 else f"{value / 1e6:.3g} M"


def milliseconds(value: float) -> str:
    """Return a time in milliseconds, with three digits at least.

    >>> milliseconds(5.886), milliseconds(0.0866), milliseconds(1280.25)
    ('5.89 ms', '0.0866 ms', '1280.25 ms')
    """
    return f"{value:.2f} ms" if value >= 1 else f"{value:.3g} ms"


def lost_points(card: Card) -> float:
    """Return by how many points of accuracy the model is worse than its source model; 0 if it is not.

    The balanced accuracy counts where classes differ much in their number of images.
    """
    accuracy = deciding_accuracy(card)
    return max(0.0, 100 * (accuracy["source"] - accuracy["reengineered"]))
