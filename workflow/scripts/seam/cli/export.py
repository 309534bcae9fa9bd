"""Write the folder to ship of a model that the workflow has re-engineered.

  seam export results/direct/resnet20-cifar10/binary/cat --out cat/

It is like the folder of `seam shrink`: the model in every form, its card, and a program for each runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "export"
HELP = "write the folder to ship of a result of the workflow"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="such as results/direct/MODEL/binary/TARGET")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write (default: shrunk/MODEL-TARGET)")
    parser.add_argument(
        "--architecture", metavar="A", help="file.py:function, if the source model needs one; its code runs"
    )
    parser.add_argument("--weights", metavar="W", help="where the source model's weights are from, for the card")
    parser.add_argument("--licence", metavar="L", help="the licence of the source model, for the card")
    parser.add_argument("--data-licence", metavar="L", help="the licence of the images, for the card")


def run(options: argparse.Namespace) -> int:
    """Write the folder and print what it holds."""
    from seam.cli.folders import own_folder
    from seam.cli.show import of_this_version
    from seam.config.entries import folder_name
    from seam.delivery.package import write_package
    from seam.errors import UserError, printable
    from seam.files import read_json
    from seam.memory import use_threads
    from seam.reuse.cards import dataset_folder, is_delivered, require_result

    use_threads(1)
    if is_delivered(options.folder):
        raise UserError(f"{options.folder} is a folder to ship already: copy it.")
    require_result(options.folder, "masks.safetensors")
    metrics = read_json(options.folder / "metrics.json")
    with of_this_version(options.folder):
        model, target, dataset = (folder_name(metrics[name]) for name in ("model", "target", "dataset"))
        data = dataset_folder(options.folder, dataset)
        if data is None:
            raise UserError(f"{options.folder} does not lie in the results of a run: there is no datasets/{dataset}.")
        out = own_folder(options.out or Path("shrunk") / f"{model}-{target}")
        about = {"weights": options.weights, "licence": options.licence, "data_licence": options.data_licence}
        card = write_package(options.folder, data, out, architecture=options.architecture, about=about)
    lines = [f"{out} holds {card['name']}:", *(f"  {name:<20}{meaning}" for name, meaning in card["files"].items())]
    print(printable("\n".join(lines)))
    return 0
