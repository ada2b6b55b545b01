"""The Hugging Face Trainer calls `model.train()` in every training step.

So `model.resnet.eval()` before `trainer.train()` lasts until the first step: then the frozen
backbone's BatchNorm layers are in training mode again and move their running statistics.

Override `train()` on the model, so that the backbone stays in eval whoever calls it.

Take the `xfail` away from the leaking test to read its failure.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from pytest_bninvariants import FrozenStateChanged

Invariant = Callable[..., AbstractContextManager[object]]
CONFIG = ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=2
)


# transformers finds the loss by how the class's name ends
class FrozenBackboneForImageClassification(ResNetForImageClassification):
    def train(self, mode: bool = True) -> "FrozenBackboneForImageClassification":
        super().train(mode)
        self.resnet.eval()
        return self


def freeze_backbone(model: ResNetForImageClassification) -> None:
    model.resnet.requires_grad_(False)
    model.resnet.eval()


def fit(model: ResNetForImageClassification, output: Path) -> None:
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    dataset = [{"pixel_values": image, "labels": i % 2} for i, image in enumerate(images)]
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=2,
        per_device_train_batch_size=4,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model=model, args=arguments, train_dataset=dataset).train()


@pytest.fixture
def model() -> ResNetForImageClassification:
    torch.manual_seed(0)
    model = ResNetForImageClassification(CONFIG)
    freeze_backbone(model)
    return model


@pytest.fixture
def mended_model() -> FrozenBackboneForImageClassification:
    torch.manual_seed(0)
    model = FrozenBackboneForImageClassification(CONFIG)
    freeze_backbone(model)
    return model


@pytest.mark.xfail(strict=True, raises=AssertionError)
@pytest.mark.frozen("resnet")
def test_eval_before_the_trainer_is_caught(
    model: ResNetForImageClassification, tmp_path: Path
) -> None:
    fit(model, tmp_path)


@pytest.mark.frozen("resnet")
def test_a_model_that_overrides_train_passes(
    mended_model: FrozenBackboneForImageClassification, tmp_path: Path
) -> None:
    fit(mended_model, tmp_path)


def test_the_head_does_train(
    mended_model: FrozenBackboneForImageClassification, tmp_path: Path
) -> None:
    before = mended_model.classifier[-1].weight.detach().clone()

    fit(mended_model, tmp_path)

    assert not torch.equal(mended_model.classifier[-1].weight, before)


def test_the_verdict_names_every_batch_norm_layer(
    model: ResNetForImageClassification, frozen: Invariant, tmp_path: Path
) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, "resnet"):
        fit(model, tmp_path)

    verdict = caught.value.verdict
    batch_norms = {n for n, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert len(batch_norms) == 6
    assert set(verdict.changed_layers) == batch_norms
    assert verdict.changed_tensors[:3] == (
        "resnet.embedder.embedder.normalization.running_mean",
        "resnet.embedder.embedder.normalization.running_var",
        "resnet.embedder.embedder.normalization.num_batches_tracked",
    )


def test_the_verdict_names_the_trainer(
    model: ResNetForImageClassification, frozen: Invariant, tmp_path: Path
) -> None:
    with pytest.raises(FrozenStateChanged) as caught, frozen(model, "resnet"):
        fit(model, tmp_path)

    (cause,) = caught.value.verdict.causes
    assert cause.name == "mode-flip"
    assert cause.place is not None
    assert cause.place.function == "fit"
    assert cause.place.call == "ResNetForImageClassification.train(True)"
    assert cause.place.tool is not None
    assert cause.place.tool.startswith("transformers.trainer.")
