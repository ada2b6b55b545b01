"""The invariants of training around other people's trainers and adapters."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from pytest_bninvariants import FrozenStateChanged, InvariantBroken, bn_updates, frozen_bn, trains
from tests.watching import watching


class Lit(lightning.LightningModule):
    def __init__(self, *, validates_in_training: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 1)
        self.validates_in_training = validates_in_training

    def training_step(self, batch: tuple[Tensor], _: int) -> Tensor:
        return self.head(self.body(batch[0])).square().mean()

    def validation_step(self, batch: tuple[Tensor], _: int) -> None:
        if self.validates_in_training:
            self.body.train()
        self.head(self.body(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(model: Lit, folder: Path, *, accumulate: int = 1) -> None:
    batches = DataLoader(TensorDataset(torch.randn(24, 3)), batch_size=6)
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, batches, batches)


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_lightnings_fit_updates_once_a_step_and_trains_everything(tmp_path: Path) -> None:
    model = Lit()
    updates = watching(bn_updates(model, per="optimizer_step"), layers=1)
    with updates, watching(trains(model), layers=7):
        fit(model, tmp_path)


def test_lightnings_accumulation_is_told(tmp_path: Path) -> None:
    model = Lit()
    with pytest.raises(InvariantBroken) as caught, bn_updates(model, per="optimizer_step"):
        fit(model, tmp_path, accumulate=2)
    assert [change.text for change in caught.value.verdict.changes] == ["4 updates, expected 2"]
    with watching(bn_updates(model, times=2, per="optimizer_step"), layers=1):
        fit(model, tmp_path, accumulate=2)


def test_a_validation_in_training_mode_is_told(tmp_path: Path) -> None:
    model = Lit(validates_in_training=True)
    with pytest.raises(InvariantBroken) as caught, bn_updates(model, per="optimizer_step"):
        fit(model, tmp_path)
    (cause,) = caught.value.verdict.causes
    assert cause.name == "extra-forward"


@pytest.mark.filterwarnings("ignore::pytest_bninvariants.InvariantHazard")
def test_torchvisions_frozen_layers_are_frozen_in_any_mode() -> None:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=2
    )
    model = nn.ModuleDict({"backbone": backbone, "head": nn.BatchNorm2d(256)}).train()

    def step() -> None:
        features = model["backbone"](torch.randn(2, 3, 64, 64))
        sum(model["head"](level).square().mean() for level in features.values()).backward()
        optimizer.step()

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watching(trains(model, "backbone.body.layer4", "head"), layers=8):
        step()
    with frozen_bn(model, "backbone"), trains(model), bn_updates(model, times=5) as guard:
        step()
    assert guard.verdict is not None
    assert guard.verdict.layers == 1
    with pytest.raises(InvariantBroken) as caught, bn_updates(model, "backbone.body.bn1"):
        step()
    assert caught.value.verdict.changes[0].text.startswith("0 updates")


def test_an_adapter_trains_while_the_statistics_of_what_it_adapts_move() -> None:
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["layer4.1.conv1"], r=2, modules_to_save=["fc"])
    model = get_peft_model(resnet18(num_classes=2), config).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with pytest.raises(InvariantBroken) as caught, trains(model):
        step()  # B is zero at first, and so is the gradient of A
    (cause,) = caught.value.verdict.causes
    assert cause.name == "zero-gradient"
    assert all("lora_A" in name for name in cause.tensors)
    with watching(trains(model), layers=24), watching(bn_updates(model), layers=20):
        step()
    with pytest.raises(FrozenStateChanged) as failure, frozen_bn(model):
        step()
    assert len(failure.value.verdict.changed_layers) == 20
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    with watching(frozen_bn(model, trains="*.modules_to_save"), layers=20, tensors=100):
        step()
