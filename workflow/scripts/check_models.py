"""Check classifiers of torchvision and timm with random weights at a small size, and write a table of what works.

    python workflow/scripts/check_models.py docs/models.md --lines models.jsonl

Models of timm are checked where the package is installed: they have "timm:" before their names.

Each model is checked in a process of its own. A line of the file `--lines` holds its findings, so that a second run
checks only the models that are missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import resource
import textwrap
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision

from seam.delivery.building import build_from_options
from seam.delivery.checking import check_network
from seam.errors import one_line
from seam.files import write_text
from seam.memory import use_threads

SIZES = (64, 128, 224)  # pixels: the first that a model takes
OUTPUTS = 10
MOST_MINUTES = 20
MOST_MEMORY = 14 << 30  # bytes of address space beyond what is in use, for a check
# Of timm, one or two of each family, the smallest; those with a position for each patch are built for the size.
TIMM = (
    "mobilenetv3_small_050", "lcnet_050", "tinynet_e", "mobilenetv4_conv_small", "ghostnet_100", "efficientnet_lite0",
    "mobileone_s0", "regnetx_002", "regnety_002", "resnet10t", "skresnet18", "resnest14d", "repvgg_a0",
    "ese_vovnet19b_dw", "hrnet_w18_small", "cspresnet50", "dla34", "convnext_atto", "convnextv2_atto",
    "edgenext_xx_small", "mobilevit_xxs", "fastvit_t8", "efficientformer_l1", "poolformer_s12", "pvt_v2_b0",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "cait_xxs24_224", "xcit_nano_12_p16_224", "mixer_s32_224",
    "swin_tiny_patch4_window7_224",
)  # fmt: skip
FORK = multiprocessing.get_context("fork")  # torch is imported once

INTRODUCTION = """\
# Which models work

<!-- Made by workflow/scripts/check_models.py: run it again after a change -->

{models}

*Masked* is the share of the parameters that masks can remove, and of the multiply-accumulates (MACs) that they can
save. *Channels* and *branches* are the numbers of sets of channels and of residual branches that can be removed
physically. The engines' numbers are the largest difference from torch, as a share of the largest output ("no": the
engine does not run the model). {threads} thread, PyTorch {torch}, ONNX Runtime {onnxruntime}.

"""


def main() -> None:
    """Check the models that are missing in the file of lines, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="the page to write")
    parser.add_argument("--lines", type=Path, default=Path("models.jsonl"), help="the findings (default: %(default)s)")
    parser.add_argument("--most", type=float, default=70, help="million parameters of a model (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="write the table of what is there, and check nothing")
    options = parser.parse_args()
    use_threads(1)
    warnings.filterwarnings("ignore")
    lines = options.lines.read_text().splitlines() if options.lines.is_file() else []
    entries = {entry["name"]: entry for entry in map(json.loads, lines)}
    for name in [] if options.table else [*names(options.most), *timm_names()]:
        if name not in entries:
            entries[name] = check(name)
            with options.lines.open("a") as file:
                file.write(json.dumps(entries[name]) + "\n")
            print(name, entries[name].get("failed"), flush=True)
    write_text(options.output, page(entries))


def names(most: float) -> list[str]:
    """Return torchvision's classifiers with at most `most` million parameters, the smallest first."""
    sizes = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        members = torchvision.models.get_model_weights(name).__members__
        sizes[name] = min((member.meta["num_params"] for member in members.values()), default=0)
    return sorted((name for name, size in sizes.items() if size <= most * 1e6), key=lambda name: sizes[name])


def timm_names() -> list[str]:
    """Return the models of TIMM, if timm is installed."""
    return [f"timm:{name}" for name in TIMM] if importlib.util.find_spec("timm") else []


def check(name: str) -> dict[str, Any]:
    """Return the findings of `seam check` for a model at the first size that it accepts, from a process of its own."""
    findings: dict[str, Any] = {}
    for size in SIZES:
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=find, args=(name, size, sender))
        process.start()
        sender.close()
        findings = {"failed": ["runs"], "findings": {"runs": "no answer"}, "engines": {}}
        with contextlib.suppress(EOFError):
            if receiver.poll(60 * MOST_MINUTES):
                findings = receiver.recv()
        process.kill()
        if "runs" not in findings["failed"]:
            break
    return {"name": name, "size": size, **findings}


def find(name: str, size: int, sender: Any) -> None:
    """Send the findings of a model at one size."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_MEMORY, in_use + MOST_MEMORY))
    try:
        check = check_network(build(name, size), OUTPUTS, size)
    except (MemoryError, RuntimeError) as error:
        return sender.send({"failed": ["runs"], "findings": {"runs": one_line(error)[:200]}, "engines": {}})
    sender.send({"failed": check.failed, "findings": check.findings, "engines": check.engines, **check.numbers})


def build(name: str, size: int) -> torch.nn.Module:
    """Return a model with random weights, for images of `size` px if it has to know."""
    if name.startswith("timm:"):
        timm: Any = importlib.import_module("timm")
        for options in ({"img_size": size}, {}):
            with contextlib.suppress(TypeError):  # it takes no size
                return timm.create_model(name.removeprefix("timm:"), num_classes=OUTPUTS, **options).eval()
    return build_from_options(f"torchvision:{name}", size=size, outputs=OUTPUTS).module


def page(entries: dict[str, dict[str, Any]]) -> str:
    """Return the page with a row for each model."""
    checked, every = sum(not name.startswith("timm:") for name in entries), len(names(1e6))
    models = f"All {checked}" if checked == every else f"The {checked} smallest of the {every}"
    models += f" classifiers of torchvision {torchvision.__version__}"
    if checked < len(entries):
        models += f", and {len(entries) - checked} small ones of timm {importlib.metadata.version('timm')}"
    models += f", with random weights and {OUTPUTS} outputs, as `seam check` sees them. "
    models += "Each was checked at the smallest size among 64, 128 and 224 px that it accepts."
    text = INTRODUCTION.format(
        models="\n".join(wrapped(models, "")), threads=1, torch=torch.__version__, onnxruntime=onnxruntime.__version__
    )
    columns = ["model", "px", "parameters", "parameters masked", "MACs", "MACs masked"]
    columns += ["channels", "branches", "export", "ONNX Runtime", "seam.engine"]
    rows = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, entry in sorted(entries.items()):
        engines = entry.get("engines", {})
        cells = [
            name, str(entry["size"]), number(entry.get("parameters")), share(entry.get("maskable")),
            number(entry.get("macs")), share(entry.get("maskable_macs")),
            f"{entry.get('channels', 0):,}", str(entry.get("branches", 0)),
            "no" if {"export", "runs"} & set(entry["failed"]) else "yes",
            *(engine(engines.get(key)) for key in ("onnxruntime", "seam")),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    failed = {name: entry["findings"].get(step, "") for name, entry in entries.items() for step in entry["failed"]}
    sentences = [f"- `{name}`: {words}" for name, words in sorted(failed.items())]
    works = sum(not entry["failed"] for entry in entries.values())
    checked = f"`seam check` finds nothing that fails in {works} of {len(entries)} models."
    checked += " An engine that does not run a model is no failure."
    rows += ["", checked, *([""] if sentences else []), *sentences]
    rows += grouped(
        '`seam.engine` runs networks of convolutions, and leaves these models to ONNX Runtime ("it" is the model)',
        {
            name: engines["seam"]
            for name, entry in entries.items()
            if isinstance((engines := entry["engines"]).get("seam"), str)
        },
    )
    rows += grouped(
        "Channels cannot be removed from these models, only single weights",
        {name: entry["findings"]["channels"] for name, entry in entries.items() if entry.get("channels") == 0},
    )
    return text + "\n".join(rows) + "\n"


def grouped(title: str, reasons: dict[str, str]) -> list[str]:
    """Return the lines of a list of reasons, each with the models that it holds for."""
    models: dict[str, list[str]] = {}
    for name, words in sorted(reasons.items()):
        models.setdefault(reason(words), []).append(f"`{name}`")
    most_first = sorted(models.items(), key=lambda item: -len(item[1]))
    lines = [line for words, names in most_first for line in wrapped(f"- {words}: {', '.join(names)}")]
    return ["", f"{title}:", "", *lines] if lines else []


def wrapped(line: str, indent: str = "  ") -> list[str]:
    """Return a paragraph or an entry of a list in lines of at most 120 characters."""
    return textwrap.wrap(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def reason(words: str) -> str:
    """Return the part of a finding that says why, without what is particular to one model.

    >>> reason("UnsupportedError: The engine does not run the model, because it has Erf (operation '/stem/Erf').")
    'it has Erf'
    >>> reason("none can be removed (UserError: No channel of the model can be removed (norm: cannot be followed): ...")
    'cannot be followed'
    """
    if " because " in words:
        words = words.partition(" because ")[2].partition(" (operation")[0].rstrip(".")
        return "it reshapes maps to tokens or groups" if words.startswith("it reshapes") else words
    return words.rpartition("(")[2].partition(")")[0].rpartition(": ")[2]


def number(value: float | None) -> str:
    """Return a number in millions."""
    return "" if value is None else f"{value / 1e6:,.1f} M"


def share(value: float | None) -> str:
    """Return a share in percent."""
    return "" if value is None else f"{value:.1%}"


def engine(value: float | str | None) -> str:
    """Return an engine's difference, or that it does not run the model."""
    return "" if value is None else "no" if isinstance(value, str) else f"{value:.0e}"


if __name__ == "__main__":
    main()
