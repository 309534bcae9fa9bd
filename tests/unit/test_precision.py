"""Precision: steps compute in the precision of the process, and everything that is measured in float32.

The tests run on the CPU in bfloat16 and, if there is one, on a GPU.
"""

from collections import Counter

import numpy as np
import pytest
import torch
from colours import ARCHITECTURE
from torch import nn

from seam.delivery.package import write_program
from seam.device import describe_device, select_device
from seam.evaluation import predict
from seam.models.surgery import with_head
from seam.precision import exact, forward, set_precision, set_products
from seam.reuse.direct import reengineer
from seam.robustness.attack import count_defects, perturb_all
from seam.search.plain import search
from seam.settings import AttackSettings, FinetuningSettings, SearchSettings, TrainingSettings
from seam.training.checkpoint import Checkpoint
from seam.training.supervised import finetune
from seam.training.supervised import train as train_source

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
PLACES = ["cpu", pytest.param("cuda", marks=GPU)]

pytestmark = pytest.mark.usefixtures("restored_device")


@pytest.fixture
def bfloat16():
    """A function that selects a device whose steps are in bfloat16, also the CPU."""

    def make(name):
        place = select_device(f"{name}/bfloat16")
        set_precision("bfloat16")
        return place

    return make


def network(place, seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return nn.Sequential(*layers).to(place, memory_format=torch.channels_last)


def batches(place, count=96, size=16, seed=0):
    """Images of two classes, which differ in their mean."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator) + (2.0 * labels[:, None, None, None] - 1)
    images = images.to(place, memory_format=torch.channels_last)
    return list(zip(images.split(size), labels.to(place).split(size), strict=True))


def watched(layer):
    """A count of what is found at each pass of the layer: whether it is in training, its output's type, and how float32
    products are computed."""
    seen = Counter()
    products = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    layer.register_forward_hook(
        lambda module, _, out: seen.update([(module.training, out.dtype, *(kind.fp32_precision for kind in products))])
    )
    return seen


STEP, MEASURED = (True, torch.bfloat16, "ieee", "ieee"), (False, torch.float32, "ieee", "ieee")
EXACT_STEP, TF32_STEP = ((True, torch.float32, kind, kind) for kind in ("ieee", "tf32"))


@pytest.mark.parametrize("place", PLACES)
def test_a_step_is_in_bfloat16_and_its_results_in_float32(bfloat16, place):
    place = bfloat16(place)
    model, (images, _) = network(place), batches(place)[0]
    seen = watched(model[0])
    found = forward(model, images)
    assert seen.keys() == {STEP}
    assert found.dtype == torch.float32
    expected = model(images)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    found.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def searched(place, checkpoint=None, wrap=list):
    """The result of a search on the place, and what its convolution computed."""
    model = with_head(network(place), 5, 2).to(place)
    torch.manual_seed(1)
    seen = watched(model.source[0])
    settings = SearchSettings(epochs=15, batch_size=16, lr_mask=0.1, patience=100)
    return search(model, wrap(batches(place)), batches(place, 48, seed=1), 0.9, settings, checkpoint), seen


@pytest.mark.parametrize("place", PLACES)
def test_a_search_in_bfloat16_agrees_with_one_in_float32(bfloat16, place):
    expected, seen = searched("cpu")
    assert seen.keys() == {EXACT_STEP, MEASURED}
    found, seen = searched(bfloat16(place))
    # Steps, the accuracy after each epoch, and a trial of the training mode before the search.
    assert seen.keys() == {STEP, MEASURED, EXACT_STEP} and seen[EXACT_STEP] == 1
    assert all(value.dtype == torch.float32 for value in found.head.values())
    for name, bound in (("retention", 0.05), ("accuracy", 0.1), ("cross_entropy", 0.05)):
        values = [[row[name] for row in result.history] for result in (expected, found)]
        np.testing.assert_allclose(*values, atol=bound)
    assert not torch.equal(*(result.head["weight"] for result in (expected, found)))


@pytest.mark.parametrize("place", PLACES)
def test_training_and_fine_tuning_are_in_bfloat16_and_learn(bfloat16, place):
    place = bfloat16(place)
    model = network(place)
    seen = watched(model[0])
    history = train_source(model, batches(place), TrainingSettings(epochs=5, lr=0.5), batches(place, 48, seed=1))
    assert seen.keys() == {STEP, MEASURED} and history[-1]["test_accuracy"] > 0.9
    seen.clear()
    options = FinetuningSettings(epochs=3, patience=3, lr=0.01, weight_decay=0.0, lr_last=0.1)
    history, _ = finetune(model, "5", batches(place), batches(place, 48, seed=1), options)
    assert seen.keys() == {STEP, MEASURED} and history[-1]["accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())


class Interrupting(list):
    """Batches that are counted, and that fail once instead of giving their 40th."""

    given = 0

    def __iter__(self):
        for batch in list.__iter__(self):
            self.given += 1
            if self.given == 40:
                raise InterruptedError
            yield batch


@pytest.mark.parametrize("place", PLACES)
def test_a_search_in_bfloat16_resumes_from_its_checkpoint(bfloat16, monkeypatch, tmp_path, place):
    place = bfloat16(place)
    uninterrupted, _ = searched(place)
    monkeypatch.setattr("seam.training.run.SAVE_SECONDS", -1)
    provenance = describe_device(place)
    with pytest.raises(InterruptedError):
        searched(place, Checkpoint(tmp_path / "x.pt", provenance, __file__), Interrupting)
    assert (tmp_path / "x.pt").exists()
    resumed, _ = searched(place, Checkpoint(tmp_path / "x.pt", provenance, __file__))
    same = torch.cat([(uninterrupted.bits[name] == resumed.bits[name]).flatten() for name in uninterrupted.bits])
    if place.type == "cpu":
        assert same.all()
    assert same.float().mean() > 0.95  # the order of a GPU's sums is not fixed


def test_a_checkpoint_of_another_precision_is_not_continued(bfloat16, tmp_path):
    place = torch.device("cpu")
    Checkpoint(tmp_path / "x.pt", describe_device(place), __file__).write({"epoch": 1})
    assert Checkpoint(tmp_path / "x.pt", describe_device(place), __file__).read() == {"epoch": 1}
    bfloat16("cpu")
    assert Checkpoint(tmp_path / "x.pt", describe_device(place), __file__).read() is None


def test_tf32_is_for_steps_alone(pretend_gpus):
    pretend_gpus("a")
    assert describe_device(select_device("cuda/tf32")) == {"device": "cuda", "precision": "tf32"}
    model, (images, labels) = network("cpu"), batches("cpu")[0]
    seen = watched(model[0])
    forward(model, images)
    assert seen.keys() == {TF32_STEP}
    options, levels = AttackSettings(steps=2), np.zeros((16, 8, 8, 3), np.int8)
    measure = {
        "accuracy": lambda: predict(model, [(images, labels)]),
        "attack": lambda: perturb_all(model, [(images, labels)], options, levels),
        "defects": lambda: count_defects(model, [(images, labels)], levels, options),
    }
    for name, run in measure.items():
        seen.clear()
        run()
        assert seen.keys() == {MEASURED}, name
    with pytest.raises(KeyError), exact():
        raise KeyError
    seen.clear()
    forward(model.train(), images)
    assert seen.keys() == {TF32_STEP}  # as before


def test_float32_is_neither(pretend_gpus):
    pretend_gpus("a")
    select_device("cuda/tf32")
    select_device("cuda/float32")
    model = network("cpu")
    seen = watched(model[0])
    forward(model, batches("cpu")[0][0])
    assert seen.keys() == {EXACT_STEP}


def test_a_program_is_written_whatever_the_precision(restored_device, tmp_path):
    """torch.export refuses a process in which the precision of convolutions is set, as on a GPU."""
    model = network("cpu").eval()
    for precisions in (("ieee",), ("tf32", "tf32")):
        before = set_products(*precisions)
        try:
            write_program(model, tmp_path / "model.pt2", (3, 8, 8))
            assert [kind.fp32_precision for kind in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)] == [
                precisions[0]
            ] * 2
        finally:
            set_products(*before)
        (tmp_path / "model.pt2").unlink()  # it is there


# ---------------------------------------------------------------------- jobs on a GPU


def reengineered(folder, model_folder, dataset_folder, device):
    settings = {"epochs": 24, "batch_size": 16, "lr_mask": 0.1, "lr_head": 0.05, "patience": 100, "few_images": 0}
    return reengineer(
        folder=folder, model_folder=model_folder, dataset_folder=dataset_folder, model="small", dataset="colours",
        problem="binary", target="red", members=["red"], settings=settings, seed=0, device=device,
        checkpoint=folder / "checkpoint.pt", architecture=ARCHITECTURE,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("precision", ["bfloat16", "tf32", "float32"])
def test_a_job_on_a_gpu_agrees_with_one_on_the_cpu(tmp_path, model_folder, dataset_folder, precision):
    expected = reengineered(tmp_path / "cpu", model_folder, dataset_folder, "cpu")
    found = reengineered(tmp_path / "gpu", model_folder, dataset_folder, f"cuda/{precision}")
    assert (found["device"], found["precision"]) == ("cuda", precision)
    assert found["accuracy"]["source"] == pytest.approx(expected["accuracy"]["source"], abs=0.03)
    assert found["accuracy"]["reengineered"] == pytest.approx(expected["accuracy"]["reengineered"], abs=0.1)
    assert found["retention"] == pytest.approx(expected["retention"], abs=0.1)  # dropout draws other numbers
