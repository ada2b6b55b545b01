"""Calls that leave frozen BN layers in training mode."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.found.nets import IMAGES, Net, found_in, frozen_net, train_step


@pytest.fixture
def net() -> Net:
    return frozen_net()


@pytest.mark.frozen_bn("backbone")
def test_the_step_alone_moves_nothing(net: Net) -> None:
    train_step(net)


@found_in("torch", "2.14.1")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.frozen_bn("backbone")
def test_torch_onnx_export(net: Net) -> None:
    torch.onnx.export(net, (IMAGES,), io.BytesIO(), dynamo=False)
    train_step(net)


@found_in("torch", "2.14.1")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.frozen_bn("backbone")
def test_torch_tensorboard(net: Net, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.add_graph(net, IMAGES)
    train_step(net)


@found_in("torchvision", "0.29.1")
@pytest.mark.frozen_bn("backbone")
def test_torchvision_graph_node_names(net: Net) -> None:
    from torchvision.models.feature_extraction import get_graph_node_names

    get_graph_node_names(net)
    train_step(net)


@found_in("torchvision", "0.29.1")
def test_torchvision_feature_extractor(net: Net, frozen_bn: Any) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(net, ["backbone"])
    with frozen_bn(extractor):
        extractor(IMAGES)


@found_in("lightning", "2.6.6")
def test_lightning_sync_batch_norm(net: Net, frozen_bn: Any) -> None:
    from lightning.pytorch.plugins import TorchSyncBatchNorm

    plugin = TorchSyncBatchNorm()
    model = plugin.revert(plugin.apply(net))
    with frozen_bn(model, "backbone"):
        train_step(model)


@found_in("lightning", "2.6.6")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.frozen_bn("backbone")
def test_lightning_to_torchscript(net: Net) -> None:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    Module().to_torchscript()
    train_step(net)


@found_in("timm", "1.0.31")
def test_timm_split_batch_norm(net: Net, frozen_bn: Any) -> None:
    from timm.layers import convert_splitbn_model

    model = convert_splitbn_model(net)
    with frozen_bn(model, "backbone"):
        train_step(model)


@found_in("timm", "1.0.31")
def test_timm_unfreeze(net: Net, frozen_bn: Any) -> None:
    from timm.utils import freeze, unfreeze

    net.eval()
    freeze(net, "backbone")
    unfreeze(net, "backbone")
    with frozen_bn(net):
        net(IMAGES)


@found_in("peft", "0.21.2")
@pytest.mark.filterwarnings("ignore:lora with eva initialization:UserWarning")
def test_peft_eva(net: Net, frozen_bn: Any) -> None:
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    config = LoraConfig(
        r=1, target_modules=["head"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    model = get_peft_model(net, config)
    initialize_lora_eva_weights(
        model,
        [IMAGES] * 20,
        forward_fn=lambda model, images: model(images),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=lambda inputs, *_: inputs[0],
        show_progress_bar=False,
    )
    with frozen_bn(model):
        train_step(model)


@found_in("monai", "1.6.1")
@pytest.mark.frozen_bn("backbone")
def test_monai_eval_mode(net: Net) -> None:
    from monai.networks.utils import eval_mode

    with eval_mode(net):
        net(IMAGES)
    train_step(net)


@found_in("thop", "0.1.1.post2209072238")
@pytest.mark.frozen_bn("backbone")
def test_thop_profile(net: Net) -> None:
    import thop

    thop.profile(net, (IMAGES,), verbose=False)
    train_step(net)


@found_in("torchattacks", "3.5.1")
@pytest.mark.frozen_bn("backbone")
def test_torchattacks(net: Net) -> None:
    import torchattacks

    torchattacks.FGSM(net)(IMAGES.sigmoid(), torch.zeros(4, dtype=torch.long))
    train_step(net)


@found_in("torch_geometric", "2.8.1")
@pytest.mark.parametrize("tool", ["summary", "get_embeddings", "Explainer"])
def test_torch_geometric(tool: str, frozen_bn: Any) -> None:
    import torch_geometric as pyg
    from torch_geometric.explain import Explainer, GNNExplainer

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.nn.GCNConv(3, 4)
            self.norm = pyg.nn.BatchNorm(4)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.norm(self.conv(x, edges))

    net = Graph().train()
    net.norm.eval()
    inputs = torch.randn(3, 3), torch.tensor([[0, 1, 2], [1, 2, 0]])
    if tool == "summary":
        pyg.nn.summary(net, *inputs)
    elif tool == "get_embeddings":
        pyg.utils.get_embeddings(net, *inputs)
    else:
        task = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
        algorithm = GNNExplainer(epochs=1)
        explain = Explainer(net, algorithm, "model", task, node_mask_type="object")
        explain(*inputs)
    with frozen_bn(net):
        net(*inputs)
