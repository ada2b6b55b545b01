"""The public layers of the survey."""

from __future__ import annotations

from pytest_bninvariants.conformance.survey import judgements
from pytest_bninvariants.conformance.survey.entries import PublicLayer

_ADAPTERS = "pytest_bninvariants.conformance.survey.adapters"
_ENDLESS = 10**12  # steps of a warm-up, and samples of a virtual batch
_SETTINGS = "eps=1e-05,momentum=0.1,affine=True,track_running_stats=True"


def _inside(path: str) -> str:
    """Return the declaration of a state that is in a BatchNorm of torch's, inside the layer."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return ",".join(f"{name}='{path}.{name}'" for name in names)


def _frozen(package: str, module: str, name: str, arguments: str) -> PublicLayer:
    """Return a layer with frozen statistics."""
    spec = f"{module}:{name}{arguments}"
    return PublicLayer(name=f"{module}.{name}", package=package, spec=spec, laws="frozen")


_TORCH = (
    *(
        PublicLayer(name=f"torch.nn.{name}", package="torch", spec=f"torch.nn:{name}")
        for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    ),
    PublicLayer(
        name="torch.nn.SyncBatchNorm",
        package="torch",
        spec="torch.nn:SyncBatchNorm",
        note="in one process, without a process group",
    ),
    PublicLayer(
        name="torch.nn.LazyBatchNorm2d",
        package="torch",
        spec=f"{_ADAPTERS}.torch:make_lazy@2d",
        note="after its first batch",
        judgements=judgements.LAZY,
    ),
)
_VISION = (
    _frozen("torchvision", "torchvision.ops", "FrozenBatchNorm2d", ""),
    PublicLayer(
        name="timm.layers.BatchNormAct2d",
        package="timm",
        spec="timm.layers:BatchNormAct2d(apply_act=False)",
    ),
    PublicLayer(
        name="timm.layers.SyncBatchNormAct",
        package="timm",
        spec="timm.layers:SyncBatchNormAct",
        note="in one process, without a process group",
    ),
    _frozen("timm", "timm.layers", "FrozenBatchNormAct2d", "(apply_act=False)"),
    PublicLayer(
        name="timm.layers.SplitBatchNorm2d",
        package="timm",
        spec="timm.layers:SplitBatchNorm2d[least_batch=4]",
        judgements=judgements.TIMM_SPLIT,
    ),
)
_TRANSFORMERS = (
    *(
        _frozen(
            "transformers",
            f"transformers.models.{model}.modeling_{model}",
            f"{prefix}FrozenBatchNorm2d",
            "[eps=1e-05]",
        )
        for model, prefix in (
            ("detr", "Detr"),
            ("conditional_detr", "ConditionalDetr"),
            ("deformable_detr", "DeformableDetr"),
            ("rt_detr", "RTDetr"),
        )
    ),
    PublicLayer(
        name="transformers.models.patchtst.modeling_patchtst.PatchTSTBatchNorm",
        package="transformers",
        spec=f"{_ADAPTERS}.transformers:ChannelsFirst"
        f"[momentum=0.1,affine=True,track_running_stats=True,{_inside('batchnorm')}]",
        note="with the channels moved from its last axis to axis 1",
    ),
)
_GRAPHS = (
    PublicLayer(
        name="torch_geometric.nn.BatchNorm",
        package="torch_geometric",
        spec=f"torch_geometric.nn:BatchNorm[{_inside('module')}]@1d",
        judgements=judgements.WRAPPED,
    ),
    PublicLayer(
        name="torch_geometric.nn.HeteroBatchNorm",
        package="torch_geometric",
        spec=f"{_ADAPTERS}.torch_geometric:OneTypeBatchNorm",
        note="with one type of nodes",
        judgements=judgements.HETERO,
    ),
    PublicLayer(
        name="e3nn.nn.BatchNorm",
        package="e3nn",
        spec=f"{_ADAPTERS}.e3nn:ScalarBatchNorm[track_running_stats=True,num_batches_tracked=None]",
        note="of scalars, with the channels moved from its last axis to axis 1",
        judgements=judgements.E3NN,
    ),
)
_REINFORCEMENT = (
    PublicLayer(
        name="torchrl.modules.BatchRenorm1d",
        package="torchrl",
        spec=f"torchrl.modules:BatchRenorm1d(warmup_steps={_ENDLESS})"
        "[momentum=0.01,affine=True,track_running_stats=True]",
        note="during its warm-up, in which its documentation says that it is a BatchNorm",
        judgements=judgements.TORCHRL_RENORM,
    ),
    PublicLayer(
        name="sb3_contrib.common.torch_layers.BatchRenorm1d",
        package="sb3_contrib",
        spec=f"sb3_contrib.common.torch_layers:BatchRenorm1d(warmup_steps={_ENDLESS})"
        "[eps=0.001,momentum=0.01,track_running_stats=True,weight='scale',running_mean='ra_mean',"
        "running_var='ra_var',num_batches_tracked='steps']@0d",
        note="during its warm-up, in which its documentation says that it is a BatchNorm; on "
        "inputs of two dimensions, since its mean is over axis 0 alone",
        judgements=judgements.SB3_RENORM,
    ),
)
_SPIKES = (
    *(
        PublicLayer(
            name=f"spikingjelly.activation_based.layer.{name}",
            package="spikingjelly",
            spec=f"spikingjelly.activation_based.layer:{name}",
        )
        for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    ),
    PublicLayer(
        name="spikingjelly.activation_based.layer.ThresholdDependentBatchNorm2d",
        package="spikingjelly",
        spec=f"{_ADAPTERS}.spikingjelly:OneStep2d[affine=True]",
        note="with alpha=1 and v_th=1, on one step of time",
        judgements=judgements.THRESHOLD,
    ),
)
_OTHERS = (
    PublicLayer(
        name="mmengine.model.utils._BatchNormXd",
        package="mmengine",
        spec="mmengine.model.utils:_BatchNormXd",
        judgements=judgements.ANY_RANK,
    ),
    PublicLayer(
        name="pytorch_tabnet.tab_network.GBN",
        package="pytorch-tabnet",
        spec=f"pytorch_tabnet.tab_network:GBN(virtual_batch_size={_ENDLESS})"
        f"[eps=1e-05,momentum=0.01,affine=True,track_running_stats=True,{_inside('bn')}]",
        note="with a virtual batch that is larger than every batch",
        judgements=judgements.GHOST,
    ),
    PublicLayer(
        name="lightly.models.batchnorm.SplitBatchNorm",
        package="lightly",
        spec="lightly.models.batchnorm:SplitBatchNorm(num_splits=1)@2d",
        note="with one split",
        judgements=judgements.LIGHTLY_SPLIT,
    ),
    PublicLayer(
        name="ofa.imagenet_classification.elastic_nn.modules.dynamic_op.DynamicBatchNorm2d",
        package="ofa",
        spec="ofa.imagenet_classification.elastic_nn.modules.dynamic_op:DynamicBatchNorm2d"
        f"[{_SETTINGS},{_inside('bn')}]",
        judgements=judgements.ELASTIC,
    ),
)
PUBLIC_LAYERS: tuple[PublicLayer, ...] = (
    *_TORCH,
    *_VISION,
    *_TRANSFORMERS,
    *_GRAPHS,
    *_REINFORCEMENT,
    *_SPIKES,
    *_OTHERS,
)
