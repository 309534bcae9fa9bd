"""The programs in a delivered folder: ten lines for each runtime that can run the model."""

from __future__ import annotations

import json

from seam.data.decoding import FORMATS

_START = '''\
"""Classify a photo by {file}: python {name} photo.jpg. Needs {needs}."""

import json
import sys
from pathlib import Path

'''

# The steps of `seam.image`, without the package.
_IMAGE = f"""\
formats = {json.dumps(FORMATS)}  # others make Pillow start programs
folder = Path(__file__).resolve().parent
card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
steps = card["preprocessing"]
image = ImageOps.exif_transpose(Image.open(open(sys.argv[1], "rb"), formats=formats))  # upright
if image.mode.startswith("I"):  # 16 bits of grey
    image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
image = image.convert("RGB")
scale = steps["resize"] / min(image.size)
image = image.resize([max(steps["resize"], int(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
left, top = (round((side - steps["resize"]) / 2) + (steps["resize"] - steps["crop"]) // 2 for side in image.size)
image = image.crop((left, top, left + steps["crop"], top + steps["crop"]))
pixels = (np.asarray(image, np.float32) / 255 - np.float32(steps["mean"])) / np.float32(steps["std"])
images = pixels.transpose(2, 0, 1)[None].astype(np.float32)
"""

_END = """\
scores = np.exp(logits - logits.max())
for name, score in zip(card["classes"], scores / scores.sum()):
    print(f"{name}: {score:.4f}")
"""

SNIPPETS = {
    "use_onnxruntime.py": _START.format(
        file="model.onnx", name="use_onnxruntime.py", needs="numpy, pillow and onnxruntime"
    )
    + """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

"""
    + _IMAGE
    + """\
session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
logits = session.run(["logits"], {"images": images})[0][0]
"""
    + _END,
    "use_torch.py": _START.format(file="model.pt2", name="use_torch.py", needs="numpy, pillow and torch")
    + """\
import numpy as np
import torch
from PIL import Image, ImageOps

"""
    + _IMAGE
    + """\
model = torch.export.load(folder / "model.pt2").module()  # only from people whom you trust: see card.md
logits = model(torch.from_numpy(images))[0].detach().numpy()
"""
    + _END,
    "use_seam.py": '''\
"""Classify a photo by the package seam: python use_seam.py photo.jpg. Needs seam-reuse; runs no code from here."""

import sys
from pathlib import Path

import seam

model = seam.load(Path(__file__).resolve().parent)
scores = model(seam.image(sys.argv[1], model.size, model.normalization)).softmax(1)[0]
for name, score in zip(model.classes, scores.tolist()):
    print(f"{name}: {score:.4f}")
''',
}
