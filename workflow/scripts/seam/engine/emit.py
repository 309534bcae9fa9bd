"""Writes a model as one C file that needs no library: its kernels, its plan, and its weights as constants.

The C file has the kernels of kernels.c that the plan names, and the structures of seam.h as constants.
"""

import argparse
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seam.engine.compiler import INSTRUCTION_SETS, KERNELS, MATH_FLAGS, InstructionSet
from seam.engine.errors import EngineError, UnsupportedError
from seam.engine.fuse import fuse
from seam.engine.layers import convert
from seam.engine.native import ACTIVATIONS, CONVOLVE, Map, Op
from seam.engine.plan import Planner
from seam.engine.program import Program
from seam.engine.reader import content, parse
from seam.engine.tiling import Machine

FIRST_CACHE, SECOND_CACHE = 32 << 10, 512 << 10  # bytes; of the device, unless the caller knows better
MOST_IMAGES = 1024
KINDS = ("PACK", "UNPACK", "CONVOLVE", "POOL_MAX", "POOL_AVERAGE", "POOL_GLOBAL", "ACTIVATE", "ADD", "MULTIPLY")
ACTIVATION_NAMES = {number: name.upper() for name, number in ACTIVATIONS.items()}
_WORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while asm typeof
class delete new this template namespace using try catch throw bool true false main
"""
KEYWORDS = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Sources:
    """What `emit` wrote, and what it says of it."""

    files: list[Path]  # the C file, its header, an example and a Makefile
    name: str
    workspace: int  # bytes
    constants: int  # bytes
    summary: str


def require_operations(model: str | Path) -> None:
    """Raise EngineError if the engine does not have the operations of the ONNX file `model`."""
    try:
        fuse(convert(parse(content(Path(model)), str(model))))
    except UnsupportedError as error:
        raise EngineError(f"Cannot compile {model}, because {error}.") from error


def emit(
    model: str | Path,
    folder: str | Path,
    name: str | None = None,
    batch: int = 1,
    instructions: str = "portable",
    caches: tuple[int, int] = (FIRST_CACHE, SECOND_CACHE),
) -> Sources:
    """Write NAME.c, NAME.h, an example main.c and a Makefile into `folder`, which is made if it is missing.

    model: an ONNX file, or a folder with a model.onnx. name: the prefix of the C names; by default after the folder
    or the file. batch: images of one call. instructions: what the device has: portable (any), avx2, avx512 or neon.
    caches: bytes of the device's first-level data cache and of its second-level cache, which the plan fits.

    For the same instruction set and caches the C code and `seam.engine` give the same bits. Raises EngineError if the
    model cannot be read, the engine does not have its operations, or an argument is out of range.
    """
    path = find_model(Path(model))
    target = {s.name: s for s in INSTRUCTION_SETS}.get(instructions)
    if target is None:
        raise EngineError(f"There are no instructions {instructions!r}: take {[s.name for s in INSTRUCTION_SETS]}.")
    if not isinstance(batch, int) or not 1 <= batch <= MOST_IMAGES:
        raise EngineError(f"The batch must be from 1 to {MOST_IMAGES} images, not {batch!r}.")
    if min(caches) < 1 << 10 or max(caches) > 1 << 30:
        raise EngineError(f"The caches must have from 1 KiB to 1 GiB, not {caches[0]} and {caches[1]} bytes.")
    prefix = c_name(name, path)
    data = content(path)
    try:
        file = parse(data, str(path))
        network = fuse(convert(file))
        planner = Planner(network, Machine(target.lanes, *caches, kernel_shapes(), target.registers))
        program = Program(planner, planner.plan(batch))
    except UnsupportedError as error:
        raise EngineError(f"Cannot compile {path}, because {error}.") from error
    writer = _Writer(prefix, target, program, network.shapes[network.input], network.shapes[network.output])
    writer.origin = f"{_comment(path.name)} (SHA-256 {hashlib.sha256(data).hexdigest()[:16]})"
    writer.classes = _classes(file.metadata, writer.outputs)
    writer.mean, writer.std = _normalization(file.metadata, path, writer.input[0])
    return writer.write(Path(folder))


def find_model(path: Path) -> Path:
    """Return the ONNX file of a result folder, or the path itself if it is a file. Raises EngineError."""
    if path.is_dir():
        if not (path / "model.onnx").is_file():
            raise EngineError(f"{path} holds no model.onnx: export the model first.")
        return path / "model.onnx"
    return path


def c_name(name: str | None, path: Path) -> str:
    """Return the prefix of all C names: `name`, or one after the model's folder or file. Raises EngineError."""
    if name is None:
        label = path.resolve().parent.name if path.name == "model.onnx" else path.stem
        label = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_").lower()
        return label if _is_name(label) else f"model_{label}".rstrip("_")
    if not _is_name(name):
        raise EngineError(f"The name {name!r} is no name in C: take letters, digits and underscores.")
    return name


def kernel_shapes() -> tuple[tuple[int, int, int, int], ...]:
    """Return (channels, rows, columns, stride) of the block kernels in the order in which kernels.c has them."""
    source = (KERNELS / "kernels.c").read_text()
    lists = {}
    for kind in ("SMALL", "LARGE"):
        body = source.split(f"#define {kind}(X, S)", 1)[1].replace("\\\n", " ").splitlines()[0]
        lists[kind] = [tuple(map(int, shape)) for shape in re.findall(r"X\((\d+), (\d+), (\d+), S\)", body)]
    every = lists["SMALL"] + lists["LARGE"]
    return tuple(
        (*shape, stride) for stride, shapes in ((1, every), (2, every), (0, lists["SMALL"])) for shape in shapes
    )


# How the files begin that have names which a folder of the user's may hold, too.
MARKS = {"main.c": b"/* Runs the network on a file of raw float32 images", "Makefile": b"# make, then: ./"}


class _Writer:
    """Turns a program into C. Pointers in its structures become the names of constant arrays."""

    def __init__(self, name: str, target: InstructionSet, program: Program, shape: tuple, result: tuple):
        self.name, self.target, self.program, self.input = name, target, program, shape
        self.outputs = math.prod(result)
        self.origin, self.classes, self.mean, self.std = "", [], [], []
        self.images = program.images
        self.arrays = {a.ctypes.data: a for a in program.kept if isinstance(a, np.ndarray)}
        self.names: dict[tuple[str, bytes], str] = {}
        self.constants: list[str] = []
        self.bytes = 0
        self.kernels: dict[int, int] = {}  # index in kernels.c: index in the file
        self.workspace = 4 * (program.workspace + program.shared)

    def write(self, folder: Path) -> Sources:
        """Write all files and describe them."""
        stages = self._stages()
        texts = {
            f"{self.name}.c": self._source(stages),
            f"{self.name}.h": self._header(),
            "main.c": _fill(_EXAMPLE, N=self.name, U=self.name.upper()),
            "Makefile": _fill(_MAKEFILE, N=self.name, FLAGS=" ".join((*MATH_FLAGS, *self.target.flags))),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, beginning in MARKS.items():
                if (folder / file).exists() and beginning not in (folder / file).read_bytes()[:1000]:
                    raise EngineError(
                        f"{folder / file} is there already, and not of this program: give another folder, or move it."
                    )
            with tempfile.TemporaryDirectory(dir=folder) as temporary:  # all files are written before one is replaced
                for file, text in texts.items():
                    Path(temporary, file).write_text(text, encoding="utf-8")
                for file in texts:
                    os.replace(Path(temporary, file), folder / file)
        except OSError as error:
            reason = error.strerror or error
            raise EngineError(
                f"Cannot write into {folder} ({reason}): free some space or fix its permissions."
            ) from error
        return Sources([folder / file for file in texts], self.name, self.workspace, self.bytes, self._summary())

    def _summary(self) -> str:
        segments = self.program.planner.plan(self.images).segments
        layers = [step.layer for segment in segments for step in segment.steps]
        total = sum(layer.weight.size for layer in layers if layer.kind == "convolution")
        kept = sum(int(np.count_nonzero(layer.weight)) for layer in layers if layer.kind == "convolution")
        return f"{kept:,} of {total:,} weights are not zero"

    # Constants

    def _array(self, address: int | None, kind: str, render: Callable[[np.ndarray], Iterable[str]]) -> str:
        """Return the name of the array at an address, after writing it as a constant of the C type `kind`."""
        if not address:
            return "0"
        array = self.arrays[address]
        key = (kind, array.tobytes())
        if key not in self.names:
            self.names[key] = f"data_{len(self.names)}"
            self.bytes += array.nbytes
            self.constants.append(
                f"static _Alignas(64) const {kind} {self.names[key]}[] = {{\n{_wrapped(render(array))}\n}};\n"
            )
        return self.names[key]

    def _blocks(self, array: np.ndarray) -> Iterable[str]:
        for y, x, kernel in array.reshape(-1, 3).tolist():
            index = self.kernels.setdefault(kernel, len(self.kernels))
            yield f"{{{y}, {x}, {index}}}"

    def _lanes(self, array: np.ndarray) -> Iterable[str]:
        lanes = self.target.lanes
        for source, mask in array.reshape(-1, 2, lanes).tolist() if array.size >= 2 * lanes else []:
            yield f"{{{{{', '.join(map(str, source))}}}, {{{', '.join(map(str, mask))}}}}}"

    # Structures

    def _stages(self) -> str:
        rows, operations = [], []
        for number, stage in enumerate(self.program.stages):
            lines = [self._operation(op) for op in (Op * stage.count).from_address(stage.ops)]
            operations.append(f"static const Op operations_{number}[] = {{\n" + ",\n".join(lines) + "\n};\n")
            sizes = (stage.count, stage.images, stage.input, stage.output, stage.buffer)
            rows.append(f"{{operations_{number}, {', '.join(map(str, sizes))}}}")
        return "\n".join([*self.constants, *operations, f"static const Stage stages[] = {{{', '.join(rows)}}};\n"])

    def _operation(self, op: Op) -> str:
        fields: dict[str, str] = {"kind": KINDS[op.kind], "activation": ACTIVATION_NAMES[op.activation]}
        for name in ("channels", "height", "width", "step_y", "step_x", "other_step", "outputs", "groups", "parts"):
            fields[name] = str(getattr(op, name))
        for name in ("taps", "blocks", "borders"):
            fields[name] = str(getattr(op, name))
        for name in ("low", "high", "alpha", "beta", "fill"):
            fields[name] = _float(getattr(op, name))
        for name, map_ in (("out", op.out), ("in", op.in_), ("other", op.other)):
            fields[name] = _map(map_)
        picture = op.picture
        sizes = (picture.images, picture.grid_y, picture.grid_x, picture.height, picture.width)
        fields["picture"] = f"{{{', '.join(map(str, sizes))}}}"
        for name in ("first", "offset"):
            fields[name] = self._array(getattr(op, name), "int32_t", _integers)
        for name in ("value", "bias", "scale"):
            fields[name] = self._array(getattr(op, name), "float", _floats)
        if op.kind == CONVOLVE:
            fields["block"] = self._array(op.block, "Block", self._blocks)
        if op.borders:
            fields["border"] = self._array(op.border, "Border", _borders)
            fields["lanes"] = self._array(op.lanes, "Lanes", self._lanes)
        return "  {" + ", ".join(f".{name} = {value}" for name, value in fields.items() if value != "0") + "}"

    # Files

    def _source(self, stages: str) -> str:
        shapes = kernel_shapes()
        used = [shapes[index] for index in self.kernels] or [shapes[0]]
        listed = " ".join(f"X({', '.join(map(str, shape))})" for shape in used)
        workspace = self.program.workspace
        return "".join(
            (
                f"/* Written by `seam compile` from {self.origin}. {self.name}.h says how to use it. */\n",
                f'#include "{self.name}.h"\n\n',
                f"#define LANES {self.target.lanes}\n#define SEAM_EMITTED\n#define SEAM_FUNCTION static\n",
                f"#define SEAM_KERNELS(X) {listed}\n\n",
                _CHECKS[self.target.name],
                (KERNELS / "seam.h").read_text(),
                (KERNELS / "kernels.c").read_text().replace('#include "seam.h"\n', ""),
                "\n/* The network: constants, operations, stages. */\n\n",
                stages,
                _fill(_RUN, N=self.name, U=self.name.upper(), OWN=str(workspace)),
                self._prepare(),
                self._labels(),
            )
        )

    def _prepare(self) -> str:
        return _fill(_PREPARE, N=self.name, U=self.name.upper()) if self.mean else ""

    def _labels(self) -> str:
        n = self.name
        parts = []
        if self.classes:
            rows = ",\n".join(f"  {_string(label)}" for label in self.classes)
            parts.append(f"\nconst char *const {n}_classes[] = {{\n{rows}\n}};\n")
        if self.mean:
            for label, values in (("mean", self.mean), ("std", self.std)):
                parts.append(f"\nconst float {n}_{label}[] = {{{', '.join(map(_float, values))}}};\n")
        return "".join(parts)

    def _header(self) -> str:
        n, u = self.name, self.name.upper()
        channels, height, width = self.input
        text = _fill(
            _HEADER, N=n, U=u, ORIGIN=self.origin, SUMMARY=self._summary(), BATCH=str(self.images),
            CHANNELS=str(channels), HEIGHT=str(height), WIDTH=str(width), OUTPUTS=str(self.outputs),
            WORKSPACE=str(self.workspace), CONSTANTS=f"{self.bytes:,}", LANES=str(self.target.lanes),
            INSTRUCTIONS=self.target.name, FLAGS=" ".join((*MATH_FLAGS, *self.target.flags)),
        )  # fmt: skip
        if self.classes:
            text += f"\n#define {u}_HAS_CLASSES 1\n/* The names of the outputs, UTF-8. */\n"
            text += f"extern const char *const {n}_classes[{u}_OUTPUTS];\n"
        if self.mean:
            text += _fill(_HEADER_PREPARE, N=n, U=u)
        return text + _HEADER_END


def _is_name(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,62}", text)) and text not in KEYWORDS


def _fill(template: str, **values: str) -> str:
    """Return the template with each @NAME@ replaced."""
    return re.sub(r"@([A-Z]+)@", lambda match: values[match.group(1)], template)


def _wrapped(items: Iterable[str]) -> str:
    lines, line, length = [], [], 0
    for item in items:
        if length + len(item) > 110:
            lines.append(" ".join(line))
            line, length = [], 0
        line.append(item + ",")
        length += len(item) + 2
    lines.append(" ".join(line))
    return "\n".join(lines) or "0"


def _integers(array: np.ndarray) -> Iterable[str]:
    return map(str, array.tolist())


def _floats(array: np.ndarray) -> Iterable[str]:
    return map(_float, array.tolist())


def _borders(array: np.ndarray) -> Iterable[str]:
    return (f"{{{to}, {source}, {pattern}}}" for to, source, pattern in array.reshape(-1, 3).tolist())


def _float(value: float) -> str:
    """Return a C constant of exactly that float32: nine digits tell any two apart."""
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = f"{value:.9g}"
    if text == "0":
        return "0"
    return text + ("f" if "." in text or "e" in text else ".0f")


def _map(value: Map) -> str:
    return f"{{{value.start}, {value.row}, {value.plane}}}"


def _string(text: str) -> str:
    """Return a C string constant of the text's UTF-8: nothing in a name can end it."""
    plain = (chr(b) if chr(b).isalnum() and b < 128 or chr(b) in " _.,-+()" else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(plain) + '"'


def _comment(text: str) -> str:
    """Return the text without what could end a comment."""
    return re.sub(r"[^\w.-]", "_", text, flags=re.ASCII)[:80]


def _classes(metadata: dict[str, str], outputs: int) -> list[str]:
    """Return the names of the outputs that the file states, or none if they are not names of these outputs."""
    try:
        names = json.loads(metadata.get("classes", "[]"))
    except (ValueError, RecursionError):
        return []
    fits = isinstance(names, list) and len(names) == outputs and all(isinstance(name, str) for name in names)
    return [name.encode("utf-8", "replace").decode() for name in names] if fits else []


def _normalization(metadata: dict[str, str], path: Path, channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel as the file states them, or two empty lists."""
    if not {"mean", "std"} <= metadata.keys():
        return [], []
    try:
        both = [[float(v) for v in json.loads(metadata[key])] for key in ("mean", "std")]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise EngineError(f"The metadata mean and std of {path} are not numbers: export the model again.") from error
    if any(len(v) != channels or not all(map(math.isfinite, v)) for v in both) or min(both[1]) <= 0:
        raise EngineError(f"The metadata mean and std of {path} are not those of {channels} channels: export it again.")
    return both[0], both[1]


_CHECKS = {
    "avx512": "#if !defined(__AVX512F__) || !defined(__FMA__)\n"
    "#error this file needs AVX-512: compile it with the flags that its header names\n#endif\n\n",
    "avx2": "#if !defined(__AVX2__) || !defined(__FMA__)\n"
    "#error this file needs AVX2 and FMA: compile it with the flags that its header names\n#endif\n\n",
    "neon": "#ifndef __ARM_NEON\n#error this file needs NEON: compile it for aarch64, or with -mfpu=neon\n#endif\n\n",
    "portable": "",
}

_HEADER = """\
/* @N@: a network for images of @CHANNELS@ x @HEIGHT@ x @WIDTH@. Written by `seam compile` from @ORIGIN@;
   @SUMMARY@.

   Compile @N@.c with gcc or clang (@INSTRUCTIONS@: vectors of @LANES@ floats):
       cc @FLAGS@ -c @N@.c
   It needs no library, except memcpy and memset where the compiler puts them in, allocates no memory, and has no state
   but a workspace. Constants take @CONSTANTS@ bytes. */
#ifndef @U@_H
#define @U@_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
  @U@_BATCH = @BATCH@,       /* images of one call */
  @U@_CHANNELS = @CHANNELS@, /* of an image */
  @U@_HEIGHT = @HEIGHT@,
  @U@_WIDTH = @WIDTH@,
  @U@_OUTPUTS = @OUTPUTS@    /* of the network, for each image */
};
#define @U@_INPUTS ((long)@U@_CHANNELS * @U@_HEIGHT * @U@_WIDTH) /* floats of an image */
#define @U@_WORKSPACE @WORKSPACE@L /* bytes that a call needs */
#define @U@_ALIGNMENT 64 /* bytes; of the workspace */

/* Runs the network. images: float[@U@_BATCH][@U@_CHANNELS][@U@_HEIGHT][@U@_WIDTH], normalised as in training.
   outputs: float[@U@_BATCH][@U@_OUTPUTS], the logits of a classifier. Uses a static workspace, so that only one call
   may run at a time. Defining @U@_NO_WORKSPACE when @N@.c is compiled leaves this function and its workspace out. */
void @N@_run(const float *images, float *outputs);

/* The same in a workspace of @U@_WORKSPACE bytes of the caller; calls with different workspaces may run at the same
   time. Returns 0, or -1 if the workspace does not begin at a multiple of @U@_ALIGNMENT bytes. */
int @N@_run_in(void *workspace, const float *images, float *outputs);

/* Returns which of an image's @U@_OUTPUTS outputs is the largest: the class of a classifier. */
int @N@_class(const float *outputs);
"""

_HEADER_PREPARE = """
#define @U@_HAS_PREPARE 1
/* Mean and standard deviation of each channel, of pixels from 0 to 1. */
extern const float @N@_mean[@U@_CHANNELS], @N@_std[@U@_CHANNELS];

/* Makes an image for the network out of pixels: unsigned char[@U@_HEIGHT][@U@_WIDTH][@U@_CHANNELS], such as RGB. */
void @N@_prepare(const unsigned char *pixels, float *image);
"""

_HEADER_END = """
#ifdef __cplusplus
}
#endif

#endif
"""

_RUN = """
int @N@_run_in(void *workspace, const float *images, float *outputs) {
  if ((uintptr_t)workspace % @U@_ALIGNMENT) return -1;
  float *own = workspace, *shared = own + @OWN@;
  const float *from = images;
  for (const Stage *stage = stages; stage < stages + sizeof stages / sizeof *stages; stage++) {
    float *to = stage->buffer < 0 ? outputs : shared + stage->buffer;
    for (int first = 0; first < @U@_BATCH; first += stage->images) {
      const int left = @U@_BATCH - first, count = left < stage->images ? left : stage->images;
      for (const Op *op = stage->ops; op < stage->ops + stage->count; op++)
        seam_operation(op, own, op->kind == UNPACK ? to + first * stage->output : (float *)from + first * stage->input,
                       count, 0, 1); /* PACK only reads `from` */
    }
    from = to;
  }
  return 0;
}

#ifndef @U@_NO_WORKSPACE
void @N@_run(const float *images, float *outputs) {
  static _Alignas(@U@_ALIGNMENT) unsigned char workspace[@U@_WORKSPACE];
  @N@_run_in(workspace, images, outputs);
}
#endif

int @N@_class(const float *outputs) {
  int best = 0;
  for (int i = 1; i < @U@_OUTPUTS; i++)
    if (outputs[i] > outputs[best]) best = i;
  return best;
}
"""

_PREPARE = """
void @N@_prepare(const unsigned char *pixels, float *image) {
  for (int c = 0; c < @U@_CHANNELS; c++)
    for (long i = 0; i < (long)@U@_HEIGHT * @U@_WIDTH; i++)
      image[c * (long)@U@_HEIGHT * @U@_WIDTH + i] =
          ((float)pixels[i * @U@_CHANNELS + c] / 255.0f - @N@_mean[c]) / @N@_std[c];
}
"""

_EXAMPLE = """\
/* Runs the network on a file of raw float32 images, [images, channels, rows, columns], and prints each one's class:
       ./@N@ images.bin [logits.bin] */
#include "@N@.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int count, char **arguments) {
  static float images[@U@_BATCH * @U@_INPUTS], outputs[@U@_BATCH * @U@_OUTPUTS];
  if (count < 2) return fprintf(stderr, "usage: %s images.bin [logits.bin]\\n", arguments[0]), 2;
  FILE *in = fopen(arguments[1], "rb"), *out = count > 2 ? fopen(arguments[2], "wb") : 0;
  if (!in || (count > 2 && !out)) return perror("cannot open a file"), 1;
  long image = 0;
  for (size_t read; (read = fread(images, sizeof(float) * @U@_INPUTS, @U@_BATCH, in)) > 0;) {
    memset(images + read * @U@_INPUTS, 0, (@U@_BATCH - read) * @U@_INPUTS * sizeof(float)); /* of a part of a batch */
    @N@_run(images, outputs);
    for (size_t i = 0; i < read; i++) {
      const int best = @N@_class(outputs + i * @U@_OUTPUTS);
#ifdef @U@_HAS_CLASSES
      printf("%ld: %s\\n", image++, @N@_classes[best]);
#else
      printf("%ld: %d\\n", image++, best);
#endif
    }
    if (out && fwrite(outputs, sizeof(float) * @U@_OUTPUTS, read, out) != read) return perror("cannot write"), 1;
  }
  fclose(in);
  return out && fclose(out) ? 1 : 0;
}
"""

_MAKEFILE = """\
# make, then: ./@N@ images.bin
CC ?= cc
CFLAGS ?= @FLAGS@

@N@: main.c @N@.c @N@.h
	$(CC) $(CFLAGS) -o $@ main.c @N@.c
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `seam compile`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a result folder with model.onnx, or an ONNX file")
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="FOLDER", help="default: out")
    parser.add_argument("--name", help="prefix of the C names; by default after FOLDER")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images of one call (default: 1)")
    names = [s.name for s in INSTRUCTION_SETS]
    parser.add_argument("--instructions", choices=names, default="portable", help="what the device has")
    parser.add_argument(
        "--caches", type=int, nargs=2, metavar="KIB", default=(FIRST_CACHE >> 10, SECOND_CACHE >> 10),
        help="of the device: first-level data and second-level cache (default: 32 512)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Compile a model as the arguments say, and print what came of it. Raises EngineError."""
    first, second = options.caches
    caches = (first << 10, second << 10)
    network = emit(options.folder, options.output, options.name, options.batch, options.instructions, caches)
    print(f"{', '.join(path.name for path in network.files)} in {options.output}: {network.summary}.")
    print(f"Constants take {network.constants / 1024:,.0f} KiB, the workspace {network.workspace / 1024:,.0f} KiB.")
    print(f"Build the example with `make -C {options.output}`; {network.name}.h says how to call the network.")
