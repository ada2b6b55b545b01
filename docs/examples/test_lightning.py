"""Lightning's BackboneFinetuning(train_bn=False) trains the BatchNorm layers that it should freeze.

It freezes the backbone by `freeze(pl_module.backbone)` and does not pass `train_bn` on: in the
"frozen" backbone the BatchNorm layers learn weight and bias, and move their running statistics.

Override two hooks. `freeze_before_training` passes `train_bn` on, which keeps the state.
`on_train_epoch_start` puts the layers in eval: else they normalise with each batch's statistics,
and the head trains on other features than those that eval and predict give it.

Take the `xfail` away from the leaking test to read its failure.
"""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from pytest_bninvariants import FrozenStateChanged, frozen

NEVER = 10


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.head(self.backbone(images)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class PassesTrainBnOn(BackboneFinetuning):
    def freeze_before_training(self, pl_module: lightning.LightningModule) -> None:
        self.freeze(pl_module.backbone, train_bn=self.train_bn)


class FrozenBackbone(PassesTrainBnOn):
    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        for layer in pl_module.backbone.modules():
            if isinstance(layer, _BatchNorm) and not self.train_bn:
                layer.eval()


def fit(model: Classifier, finetuning: type[BackboneFinetuning]) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 8, 8, generator=generator) + 1
    labels = torch.randint(3, (8,), generator=generator)
    callback = finetuning(unfreeze_backbone_at_epoch=NEVER, train_bn=False)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, barebones=True, callbacks=[callback]
    )
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_size=4))


@pytest.fixture
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.frozen("backbone")
def test_backbone_finetuning_is_caught(model: Classifier) -> None:
    fit(model, BackboneFinetuning)


@pytest.mark.frozen("backbone")
def test_batch_norm_frozen_and_in_eval_passes(model: Classifier) -> None:
    fit(model, FrozenBackbone)


@pytest.mark.frozen("backbone", allow_batch_stats=True)
def test_passing_train_bn_on_keeps_the_state(model: Classifier) -> None:
    fit(model, PassesTrainBnOn)


def test_the_verdict_names_weight_and_bias_too(model: Classifier) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, "backbone"):
        fit(model, BackboneFinetuning)

    verdict = caught.value.verdict
    assert verdict.changed_layers == ("backbone.1",)
    assert verdict.changed_tensors == (
        "backbone.1.weight",
        "backbone.1.bias",
        "backbone.1.running_mean",
        "backbone.1.running_var",
        "backbone.1.num_batches_tracked",
    )
    assert "training-mode" in [cause.name for cause in verdict.causes]


def test_passing_train_bn_on_alone_leaves_batch_statistics(model: Classifier) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, "backbone"):
        fit(model, PassesTrainBnOn)

    verdict = caught.value.verdict
    assert verdict.changed_tensors == ()
    assert [(change.name, change.kind) for change in verdict.changes] == [
        ("backbone.1", "batch-statistics")
    ]
