"""The functions of docs/library.md in programs of one's own: interruptions, mistakes, unusual networks."""

import copy
import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from seam.cost.export import export
from seam.data.batches import batches as batches_of
from seam.data.problems import Subset, hold_out, target_problem
from seam.data.storage import Split
from seam.errors import UserError
from seam.evaluation import accuracy, predict
from seam.masks.biases import add_shifts
from seam.masks.bits import bake
from seam.masks.channels import find_groups
from seam.masks.masks import Masks
from seam.models.folding import fold
from seam.models.surgery import set_training_mode, with_head
from seam.reuse.delivered import OnnxModule
from seam.search.by_channel import search_channels
from seam.search.plain import search
from seam.settings import SearchSettings, search_settings
from seam.training.checkpoint import Checkpoint
from seam.training.run import TrainingRun

BUDGET = {"budget": {"weights": 0.5, "epochs": 3, "batch_size": 16}}
CHANNELS = {
    "granularity": "channel",
    "budget": {"macs": 0.6, "epochs": 4, "batch_size": 16},
    "channels": {"multiple": 4},
}


def network(bias=False, norm=nn.BatchNorm2d):
    torch.manual_seed(1)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm(8), nn.ReLU(), nn.Conv2d(8, 16, 3, bias=bias), norm(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean), nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.3), nn.init.normal_(layer.bias)
    return layers.eval()


def batches(count=48, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return list(zip(images.split(size), labels.split(size), strict=True))


def settings(**values):
    return SearchSettings(**search_settings(values))


def test_a_search_that_fails_leaves_the_network_as_it_was():
    class Interrupted:
        def __init__(self, epoch):
            self.left = epoch

        def __len__(self):
            return 3

        def __iter__(self):
            self.left -= 1
            for images, labels in batches():
                yield images if self.left else images * float("nan"), labels
            if not self.left:
                raise KeyboardInterrupt

    for bias, folded, given in (
        (False, False, BUDGET),
        (True, True, BUDGET),
        (False, False, {"epochs": 4, "lr_mask": 0.3}),
    ):
        source = fold(network(bias)) if folded else network(bias)
        before = copy.deepcopy(source.state_dict())
        with pytest.raises((KeyboardInterrupt, UserError)):
            search(with_head(source, 4, 2), Interrupted(3), batches(seed=1), 0.8, settings(**given))
        for name, value in source.state_dict().items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6 if folded else 0)
        assert not any(
            parameter.requires_grad or parameter._post_accumulate_grad_hooks for parameter in source.parameters()
        )
    source = network()
    before = copy.deepcopy(source.state_dict())
    with pytest.raises((KeyboardInterrupt, UserError)):
        search_channels(
            with_head(source, 4, 2),
            find_groups(source, torch.zeros(2, 3, 8, 8)),
            Interrupted(3),
            batches(seed=1),
            0.8,
            settings(**CHANNELS),
        )
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize(
    "labels, message",
    (
        (lambda labels: labels + 1, "training labels go from 1 to 2, and the model has fewer outputs: labels are"),
        (lambda labels: labels - 1, "labels go from -1 to 0: labels are the numbers of outputs, from 0"),
        (lambda labels: labels.float(), r"labels of 16 images have the shape \(16,\) and the type torch.float32: give"),
        (lambda labels: labels[:, None], r"labels of 16 images have the shape \(16, 1\)"),
        (lambda labels: labels[:9], r"labels of 16 images have the shape \(9,\)"),
        (lambda labels: labels.int(), r"training labels are torch.int32: convert them with .long\(\)"),
    ),
)
@pytest.mark.parametrize("given", (BUDGET, {"epochs": 2}, CHANNELS), ids=("budget", "published", "channels"))
def test_training_labels_that_are_not_numbers_of_outputs_are_named(given, labels, message):
    source = network()
    training = [(images, labels(right)) for images, right in batches()]
    before, model = copy.deepcopy(source.state_dict()), with_head(source, 4, 2)
    with pytest.raises(UserError, match=message):
        if given is CHANNELS:
            groups = find_groups(source, torch.zeros(2, 3, 8, 8))
            search_channels(model, groups, training, batches(seed=1), 0.8, settings(**given))
        else:
            search(model, training, batches(seed=1), 0.8, settings(**given))
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_a_checkpoint_never_replaces_a_file_that_was_set_aside(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network().state_dict(), path)
    weights = path.read_bytes()
    assert Checkpoint(path, {}, __file__).read() is None  # a wrong path: the file moves
    Checkpoint(path, {"a": 1}, __file__).write({"epoch": 1})
    assert Checkpoint(path, {"a": 2}, __file__).read() is None
    assert {each.name for each in tmp_path.iterdir()} == {"model.pt.aside", "model.pt.aside1"}
    assert (tmp_path / "model.pt.aside").read_bytes() == weights


def test_a_checkpoint_is_no_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "x.pt"):
        with pytest.raises(UserError, match="cannot be a checkpoint .*: give the path of a file"):
            Checkpoint(path, {}, __file__).read()
    assert (tmp_path / "folder").is_dir()


def test_a_search_of_channels_can_select_the_last_epoch():
    source = network()
    groups = find_groups(source, torch.zeros(2, 3, 8, 8))
    given = settings(**CHANNELS, selection="last")
    result = search_channels(with_head(source, 4, 2), groups, batches(), batches(), 0.8, given)
    assert [row["accuracy"] is None for row in result.history] == [True, True, True, False]
    assert result.selected_epoch == 4


def test_a_network_whose_channels_cannot_be_followed_has_a_sentence():
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4, track_running_stats=False)
    )
    with pytest.raises(UserError, match="cannot be followed, because it does not run on an image of zeros .Expected"):
        find_groups(layers, torch.zeros(1, 3, 8, 8))


def test_a_notebook_has_no_file_for_a_checkpoint(tmp_path):
    Checkpoint(tmp_path / "x.pt", {}, None).write({"epoch": 1})
    assert Checkpoint(tmp_path / "x.pt", {}, None).read() == {"epoch": 1}


def test_a_run_resumes_in_the_order_of_a_dataloader(tmp_path):
    data = torch.utils.data.TensorDataset(torch.arange(12.0), torch.zeros(12, dtype=torch.int64))
    loader = torch.utils.data.DataLoader(data, 2, shuffle=True)

    def seen(stop=None):
        images, trained = [], []

        def step(batch, labels):
            images.extend(batch.tolist())
            trained.append(torch.rand(()).item())  # as dropout draws
            return torch.zeros(len(batch), 2), torch.tensor(0.0)

        torch.manual_seed(0 if stop or not path.exists() else 99)
        with TrainingRun(loader, {}, Checkpoint(path, {}, __file__)) as run:
            if stop:
                run.is_save_due = lambda: len(trained) == stop
                loaded = run.remaining_batches()
                run.remaining_batches = lambda: (next(loaded) for _ in range(stop))
            run.train_epoch(step)
        return images, trained

    path = tmp_path / "run.pt"
    whole = seen()
    path.unlink(missing_ok=True)
    first = seen(stop=3)
    rest = seen()
    assert (first[0] + rest[0], first[1] + rest[1]) == whole
    assert sorted(whole[0]) == list(range(12))


def test_a_run_without_a_generator_resumes_with_the_images_that_are_left():
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 8, 8, 3).contiguous().numpy()
    split = Split(np.zeros(12, np.int64), (8, 8), images)
    torch.manual_seed(0)
    data = batches_of(split, np.arange(12), np.zeros(12, np.int64), 2, normalization=([0] * 3, [1] * 3), shuffle=True)
    run = TrainingRun(data, {})
    first = [number(batch) for batch in itertools.islice(run.remaining_batches(), 3)]
    again = TrainingRun(data, {})
    again.generator_state, again.batch = run.generator_state, 3
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rest = [number(batch) for batch in again.remaining_batches()]
    assert sorted(sum(first + rest, [])) == list(range(12))
    assert torch.equal(torch.get_rng_state(), before)  # the steps draw on as they would have


def number(batch):
    return (batch[0][:, 0, 0, 0] * 255).round().int().tolist()


def test_numbers_of_numpy_are_resumed_from(tmp_path):
    def run(epochs):
        torch.manual_seed(0)
        checkpoint = Checkpoint(tmp_path / "x.pt", {}, __file__)

        def measure(logits, labels):
            return (logits.argmax(1) == labels).numpy().mean()

        return search(
            with_head(network(), 4, 2), batches(), batches(seed=1), np.float64(0.8), settings(epochs=epochs),
            checkpoint, measure=measure,
        )  # fmt: skip

    run(2)
    assert isinstance(Checkpoint(tmp_path / "x.pt", {}, __file__).read(), dict)
    assert len(run(3).history) == 3 and not list(tmp_path.glob("*.aside*"))


def test_masks_and_biases_fit_a_folded_network():
    images, source = torch.randn(4, 3, 8, 8), network(bias=True)
    masks = Masks(fold(copy.deepcopy(source)))
    generator = torch.Generator().manual_seed(0)
    bits = {name: torch.rand(value.shape, generator=generator) > 0.4 for name, value in masks.values.items()}
    shifts = {"1": torch.randn(8, generator=generator), "8": torch.randn(4, generator=generator)}
    for with_bias in (False, True):
        plain = network(bias=with_bias)
        folded = fold(copy.deepcopy(plain))
        own = {name: bit for name, bit in bits.items() if name in dict(plain.named_parameters())}
        for module in (plain, folded):
            add_shifts(module, shifts)
            bake(module, own)
        torch.testing.assert_close(folded(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("computed", [
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5), parametrizations.weight_norm,
    parametrizations.spectral_norm, torch.nn.utils.weight_norm,
])  # fmt: skip
def test_computed_weights_are_not_folded(computed):
    source, images = network(), torch.randn(4, 3, 8, 8)
    computed(source[0])
    before = source.eval()(images)
    torch.testing.assert_close(fold(source)(images), before, rtol=1e-4, atol=1e-5)
    assert isinstance(source[1], nn.BatchNorm2d) and not isinstance(source[4], nn.BatchNorm2d)


def test_predict_leaves_the_modes_of_layers_alone():
    source = network()
    set_training_mode(source)
    modes = [layer.training for layer in source.modules()]
    predict(source, batches())
    assert [layer.training for layer in source.modules()] == modes and not source[1].training
    with pytest.raises(RuntimeError):
        predict(source, [(torch.zeros(1, 5, 8, 8), torch.zeros(1, dtype=torch.int64))])
    assert [layer.training for layer in source.modules()] == modes


def test_a_network_that_keeps_its_first_tensors_can_be_evaluated_before_a_search():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.grid = network(), None

        def forward(self, images):
            outputs = self.layers(images)
            if self.grid is None:
                self.grid = 0.5 * outputs.new_ones(4)
            return outputs * self.grid

    source = Grid()
    before = accuracy(*predict(source, [(images, labels) for images, labels in batches(seed=1)]))
    result = search(with_head(source, 4, 2), batches(), batches(seed=1), before, settings(**BUDGET))
    assert result.budget["met"]


def test_instance_norm_keeps_its_statistics():
    source = network(norm=lambda channels: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True))
    before = {name: value.clone() for name, value in source.named_buffers()}
    search(with_head(source, 4, 2), batches(), batches(seed=1), 0.8, settings(**BUDGET))
    assert all(torch.equal(value, before[name]) for name, value in source.named_buffers())


def changed(**parts):
    """Return batches whose first one has other images or labels."""
    images, labels = batches(seed=1)[0]
    return [(parts.get("images", images), parts.get("labels", labels))]


@pytest.mark.parametrize(("given", "words"), [
    ({"selection": []}, "no images to compare epochs on"),
    ({"train": []}, "no images to train on"),
    ({"selection": [{"images": 1}]}, "A batch is of the type dict: give pairs"),
    ({"train": [{"images": 1, "labels": 2}]}, "A batch is of the type dict: give pairs"),
    ({"selection": changed(labels=torch.zeros(16, 1, dtype=torch.int64))}, r"shape \(16, 1\)"),
    ({"selection": changed(labels=torch.zeros(16))}, "torch.float32: give one whole number"),
    ({"selection": changed(labels=torch.full((16,), 2))}, "from 2 to 2, and the model has 2 outputs"),
    ({"selection": changed(images=torch.zeros(16, 3, 8, 8, dtype=torch.float64))}, "the images are torch.float64"),
    ({"source": network().double()}, "the network's weights are torch.float64"),
    ({"source": torch.jit.trace(network(), torch.zeros(1, 3, 8, 8))}, "TorchScript module"),
    ({"width": 10}, r"gives \[2, 4\] for 2 images, but the head takes \[2, 10\]"),
    ({"settings": settings(**CHANNELS)}, "search of channels: call seam.search.by_channel.search_channels"),
])  # fmt: skip
def test_mistakes_have_a_sentence(given, words):
    values = {
        "source": network(),
        "train": batches(),
        "selection": batches(seed=1),
        "width": 4,
        "settings": settings(**BUDGET),
    }
    values |= given
    model = with_head(values["source"], values["width"], 2)
    with pytest.raises(UserError, match=words):
        search(model, values["train"], values["selection"], 0.8, values["settings"])


def test_a_model_without_logits_has_a_sentence():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, images):
            return self.layers(images), images

    with pytest.raises(UserError, match="gives a tuple for 2 images"):
        search(with_head(Pair(), 4, 2), batches(), batches(seed=1), 0.8, settings(**BUDGET))


def test_weights_of_classes_can_be_whole_numbers():
    result = search(
        with_head(network(), 4, 2), batches(), batches(seed=1), 0.8, settings(**BUDGET), class_weights=np.array([1, 3])
    )
    assert result.budget["met"]


def test_kinds_of_problems_are_checked():
    for kind, members, words in (
        ("Binary", ["cat"], "Binary is no kind of problem: choose among binary"),
        ("multiclass", ["cat"], "at least two classes, and this one names 1"),
        ("binary", ["cat", "dog"], "one class, and this one names 2"),
    ):
        with pytest.raises(UserError, match=words):
            target_problem(kind, None, "x", members, 0)


def test_holding_out_leaves_an_image_of_each_class():
    train, held = hold_out(Subset(np.arange(4), np.array([0, 0, 1, 1])), 0.8, 0)
    assert train.labels.tolist() == held.labels.tolist() == [0, 1]


def test_exports_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="are torch.float16: export module.float()"):
        export(network().half(), tmp_path / "x.onnx", (3, 8, 8))

    class Broken(nn.Module):
        def forward(self, images):
            return images.nothing

    with pytest.raises(UserError, match="Cannot export the model of .*x.onnx to ONNX"):
        export(Broken(), tmp_path / "x.onnx", (3, 8, 8))

    class Pair(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)), images

    with pytest.raises(UserError, match="model of .*x.onnx returns a tuple: it must return its logits, one tensor"):
        export(Pair(), tmp_path / "x.onnx", (3, 8, 8))
    assert not (tmp_path / "x.onnx").exists()
    export(nn.DataParallel(network()), tmp_path / "y.onnx", (3, 8, 8))
    module = OnnxModule(tmp_path / "y.onnx")
    images = torch.randn(2, 3, 8, 8)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(images), module(images))
    with pytest.raises(UserError, match=r"takes images of the shape \[N, 3, 8, 8\], and these have \[2, 3, 9, 9\]"):
        module(torch.zeros(2, 3, 9, 9))
    assert Path(module.path).is_file()
