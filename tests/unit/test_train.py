import pandas as pd
import pytest
import torch
from colours import ARCHITECTURE
from torch import nn

from seam.errors import UserError
from seam.models.weights import open_source
from seam.settings import TrainingSettings
from seam.training.supervised import one_cycle, train


def batches(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (64,), generator=generator)
    images = torch.randn(64, 4, generator=generator) + 2.0 * labels[:, None]
    return list(zip((images * scale).split(16), labels.split(16), strict=True))


def test_training_learns_and_its_history_tells(model_folder):
    history = pd.read_csv(model_folder / "training.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["test_accuracy"].iloc[-1] > 0.8
    source = open_source(model_folder, architecture=ARCHITECTURE)
    assert source.classes == ["blue", "green", "red", "yellow"]
    assert all(0.3 < mean < 0.7 for mean in source.normalization[0])  # of the training images


def test_the_same_seed_gives_the_same_weights():
    def run():
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        train(model, batches(), TrainingSettings(epochs=2, batch_size=16))
        return model.weight

    assert torch.equal(run(), run())


def test_the_rate_rises_and_falls_to_zero(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    train(nn.Linear(4, 2), batches(), TrainingSettings(epochs=5, batch_size=16, lr=0.2))
    assert len(rates) == 20 and max(rates) == pytest.approx(0.2, rel=0.05)
    assert rates.index(max(rates)) in (3, 4) and rates[-1] < 0.001 and rates[0] < 0.02


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 50])
def test_the_cycle_can_be_short(steps):
    factors = [one_cycle(steps)(step) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    if steps >= 10:  # as torch has it
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
        torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, steps, pct_start=0.2, cycle_momentum=False)
        for factor in factors:
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-5)
            optimizer.step()
            torchs.step()


def test_a_loss_that_is_not_finite_is_said_in_a_sentence():
    with pytest.raises(UserError, match="loss became nan in epoch 1: lower training.lr"):
        train(nn.Linear(4, 2), batches(scale=float("nan")), TrainingSettings(epochs=1))
