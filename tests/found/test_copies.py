"""Averages, teachers and conversions that lose what a BN layer held, or share it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from pytest_bninvariants import assert_same_output, frozen_bn, trains
from tests.found.nets import IMAGES, Net, found_in, frozen_net

LABELS = torch.tensor([0, 1, 0, 1])


@found_in("lightning", "2.6.6")
@pytest.mark.filterwarnings("ignore")
def test_lightning_stochastic_weight_averaging() -> None:
    import lightning
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = frozen_net()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.head.parameters(), lr=0.1)

    module = Module()
    swa = StochasticWeightAveraging(swa_lrs=0.1, swa_epoch_start=1)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=2, barebones=True, callbacks=[swa])
    with frozen_bn(module):
        trainer.fit(module, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2))


@found_in("pytorch-ignite", "0.5.5")
def test_ignite_ema_handler() -> None:
    from ignite.engine import Engine
    from ignite.handlers import EMAHandler

    net = Net().train()
    engine = Engine(lambda _, images: net(images))
    handler = EMAHandler(net)
    handler.attach(engine)
    engine.run([IMAGES])
    with frozen_bn(handler.ema_model, allow_batch_stats=True):
        net(IMAGES)


@found_in("avalanche-lib", "0.6.0")
@pytest.mark.parametrize("method", ["LwF", "FeatureDistillation", "iCaRL"])
def test_avalanche_teachers(method: str) -> None:
    from avalanche.benchmarks import tensors_benchmark
    from avalanche.models.utils import FeatureExtractorModel
    from avalanche.training.losses import ICaRLLossPlugin
    from avalanche.training.plugins import FeatureDistillationPlugin, LwFPlugin
    from avalanche.training.supervised import Naive

    stem, head = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)
    model = nn.Sequential(stem, head)
    if method == "FeatureDistillation":
        model = FeatureExtractorModel(stem, head)
    plugin = {
        "LwF": LwFPlugin,
        "FeatureDistillation": lambda: FeatureDistillationPlugin(mode="cosine"),
        "iCaRL": ICaRLLossPlugin,
    }[method]()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=plugin if method == "iCaRL" else nn.CrossEntropyLoss(),
        plugins=[plugin],
        evaluator=None,
        train_mb_size=4,
    )
    task = torch.randn(12, 3), torch.arange(12) % 2
    benchmark = tensors_benchmark(
        train_tensors=[task, task],
        test_tensors=[task],
        task_labels=[0, 0],
        complete_test_set_only=True,
    )
    strategy.train(benchmark.train_stream[0])
    teacher = plugin.old_model if method == "iCaRL" else teacher_of(plugin)
    with frozen_bn(teacher):
        strategy.train(benchmark.train_stream[1])


def teacher_of(plugin: Any) -> nn.Module:
    holder = getattr(plugin, "lwf", plugin)
    teacher: nn.Module = holder.prev_model
    return teacher


def detr_config(backbone: Any) -> Any:
    from transformers import DetrConfig

    return DetrConfig(
        backbone_config=backbone,
        d_model=8,
        num_queries=3,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
    )


@found_in("transformers", "5.24.0")
def test_transformers_detr_drops_activations() -> None:
    import timm
    from transformers import DetrModel, TimmBackboneConfig

    name, level = "mobilenetv3_small_050", (4,)
    backbone = TimmBackboneConfig(backbone=name, out_indices=level, use_pretrained_backbone=False)
    detr = DetrModel(detr_config(backbone)).eval()
    reference = timm.create_model(name, features_only=True, out_indices=level).eval()
    reference.load_state_dict(detr.backbone.model.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    assert_same_output(reference, detr.backbone.model, images, rtol=1e-3, atol=1e-4)


@found_in("transformers", "5.24.0")
def test_transformers_detr_drops_eps() -> None:
    from transformers.models.detr.modeling_detr import replace_batch_norm

    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3)).eval()
    net[1].running_var.fill_(0.01)
    converted = copy.deepcopy(net)
    with torch.no_grad():
        replace_batch_norm(converted)
    assert_same_output(net, converted, IMAGES, rtol=1e-4, atol=1e-5)


@found_in("transformers", "5.24.0")
def test_transformers_detr_freezes_the_whole_resnet() -> None:
    from transformers import DetrModel, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=4,
        hidden_sizes=[4, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    detr = DetrModel(detr_config(backbone)).train()
    optimizer = torch.optim.AdamW(detr.parameters())
    with trains(detr, "backbone.model.encoder.stages.3"):
        detr(torch.randn(2, 3, 64, 64)).last_hidden_state.square().mean().backward()
        optimizer.step()
