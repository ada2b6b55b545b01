"""Calls and options that move statistics of layers that they freeze, or only look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.found.nets import IMAGES, Net, found_in, frozen_net


@pytest.fixture
def net() -> Net:
    return frozen_net()


@found_in("transformers", "5.24.0")
def test_transformers_freeze_base_model(frozen_bn: Any) -> None:
    from transformers import Wav2Vec2ConformerConfig, Wav2Vec2ConformerForSequenceClassification

    config = Wav2Vec2ConformerConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_feat_extract_layers=1,
        conv_dim=(8,),
        conv_stride=(4,),
        conv_kernel=(8,),
        conv_depthwise_kernel_size=3,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=4,
    )
    model = Wav2Vec2ConformerForSequenceClassification(config)
    model.freeze_base_model()
    model.train()
    with frozen_bn(model):
        model(torch.randn(2, 400), labels=torch.tensor([0, 1])).loss.backward()


@found_in("torchvision", "0.29.1")
def test_torchvision_trainable_backbone_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen_bn: Any
) -> None:
    from torchvision.models import MobileNet_V3_Large_Weights, mobilenet_v3_large
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    weights = MobileNet_V3_Large_Weights.IMAGENET1K_V1
    file = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    file.parent.mkdir(parents=True)
    torch.save(mobilenet_v3_large().state_dict(), file)  # in the place of a download
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    detector = ssdlite320_mobilenet_v3_large(weights_backbone=weights, trainable_backbone_layers=2)
    detector.train()
    assert not detector.backbone.features[0][0][1].weight.requires_grad
    target = {"boxes": torch.tensor([[0.0, 0.0, 99.0, 99.0]]), "labels": torch.tensor([1])}
    with frozen_bn(detector, "backbone.features.0.0.1"):
        detector([torch.rand(3, 320, 320)] * 2, [target] * 2)


@found_in("peft", "0.21.2")
@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.frozen_bn
def test_peft_lora_ga(net: Net) -> None:
    from peft import LoraConfig, LoraGAConfig
    from peft.tuners.lora import preprocess_loraga

    net.eval()
    config = LoraConfig(
        target_modules=["head"], init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )
    preprocess_loraga(net, config, lambda: net(IMAGES).square().mean().backward())


@found_in("torchmetrics", "1.9.0")
def test_torchmetrics_fid(net: Net, frozen_bn: Any) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    extractor = Net().eval().requires_grad_(False)
    extractor.num_features = 2
    net.fid = FrechetInceptionDistance(extractor, normalize=True, input_img_size=(3, 8, 8))
    net.train()
    with frozen_bn(net, "fid"):
        net.fid.update(IMAGES.sigmoid(), real=True)


@found_in("torchsummary", "1.5.1")
def test_torchsummary(net: Net, frozen_bn: Any) -> None:
    import torchsummary

    net.train()
    with frozen_bn(net):
        torchsummary.summary(net, (3, 8, 8), device="cpu")


@found_in("monai", "1.6.1")
def test_monai_hovernet(frozen_bn: Any) -> None:
    from monai.networks.nets import HoVerNet

    net = HoVerNet(freeze_encoder=True).train()
    with frozen_bn(net, "res_blocks.d3"), torch.no_grad():
        net(torch.randn(1, 3, 256, 256))
