"""ResNets with the CIFAR stem as registered timm architectures, and the projector (SPEC section 2).

Only what differs from timm's ``ResNet`` is here: a 3x3 stem of stride 1 without max-pool, and for ``resnet20`` the
three thin stages of He et al. Everything else (``features_only``, ``reset_classifier``, drop path ...) is timm's, the
first weights too: the last batch norm of a block begins at 0, where SupContrast's and solo-learn's begin at 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from . import index

ARCHITECTURES = ("resnet20_cifar", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnet101_cifar")


class CifarResNet(ResNet):
    """timm's ResNet for images of 8 to 64 pixels: stem 3x3, stride 1, no max-pool; features of stride 1, 1, 2, 4, 8.

    Args:
        block: timm's ``BasicBlock`` or ``Bottleneck``.
        layers: blocks per stage; three or four stages.
        in_chans: image channels.
        channels: width of each stage; the stem is as wide as the first.
        **kwargs: everything else timm's ``ResNet`` takes.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        in_chans: int = 3,
        channels: tuple[int, ...] = (64, 128, 256, 512),
        **kwargs: Any,
    ) -> None:
        super().__init__(block, layers, in_chans=in_chans, channels=channels, **kwargs)
        factory = {"device": self.conv1.weight.device, "dtype": self.conv1.weight.dtype}  # type: ignore[has-type]
        width = channels[0]
        self.conv1 = nn.Conv2d(in_chans, width, 3, stride=1, padding=1, bias=False, **factory)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's init_weights
        if width != 64:  # timm's stem is 64 wide whatever the stages are: bring the first block down to it
            self._narrow_stem(block, width, factory)
        self.maxpool = nn.Identity()
        for stage, info in enumerate(self.feature_info):
            info["reduction"] = 2 ** max(0, stage - 1)
        self.feature_info[0]["num_chs"] = width
        if len(layers) == 3:
            # timm's forward names layer1 to layer4: an empty Sequential (not Identity: checkpointing iterates it).
            self.layer4 = nn.Sequential()

    def _narrow_stem(self, block: Any, width: int, factory: dict[str, Any]) -> None:
        first = self.layer1[0]
        if block is not BasicBlock:
            raise ValueError("a stem narrower than 64 channels is for BasicBlock nets")
        self.bn1 = type(self.bn1)(width, **factory)  # type: ignore[has-type]
        conv = nn.Conv2d(width, width, 3, stride=1, padding=1, bias=False, **factory)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        first.conv1, first.downsample = conv, None

    def forward_intermediates(self, x: Tensor, indices: Any = None, **kwargs: Any) -> Any:
        """As timm's, which counts five features whatever the net; here as many as ``feature_info`` has."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        return super().forward_intermediates(x, indices=take, **kwargs)

    def prune_intermediate_layers(self, indices: Any = 1, prune_norm: bool = False, prune_head: bool = True) -> Any:
        """As timm's, over the features of ``feature_info``."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        return super().prune_intermediate_layers(take, prune_norm, prune_head)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **model_args: Any) -> ResNet:
    features = {"out_indices": tuple(range(len(model_args["layers"]) + 1))}
    state = _released_state(variant, kwargs) if pretrained else None
    if state is not None:
        kwargs = {
            **kwargs,
            "pretrained_cfg_overlay": {**(kwargs.get("pretrained_cfg_overlay") or {}), "state_dict": state},
        }
    model = build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=features, **dict(model_args, **kwargs))
    if state is not None:
        model.pretrained_cfg.pop("state_dict", None)
    return model


def _released_state(variant: str, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The checked weights of timm's ``architecture.tag``; None where the caller says where the weights are."""
    from .weights import locate, read_weights  # of the same floor; it imports nothing of this file

    cfg, overlay = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay") or {}
    elsewhere = {"state_dict", "file", "url", "hf_hub_id", "source"}
    if not isinstance(cfg, (str, type(None))) or elsewhere & set(overlay):
        return None
    name = index.name_of(variant, resolve_pretrained_cfg(variant, cfg).tag or "")
    return read_weights(locate(name, cache_dir=kwargs.get("cache_dir"))) if name else None


def default_cfg(architecture: str, **changes: Any) -> dict[str, Any]:
    """timm's pretrained_cfg of a CIFAR-stem net; ``changes`` are those of one data set and its weights."""
    stride = 4 if architecture == "resnet20_cifar" else 8  # three stages, or four
    side = -(-changes.get("input_size", (3, 32, 32))[-1] // stride)
    return {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "min_input_size": (3, 8, 8),
        "pool_size": (side, side),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        **changes,
    }


def _tagged_cfgs() -> dict[str, dict[str, Any]]:
    """Every released name as timm spells it: ``tcl_resnet20_digits`` is ``resnet20_cifar.tcl_digits``."""
    cfgs = {}
    for name, entry in index.entries().items():
        if entry["architecture"] in ARCHITECTURES:
            cfgs[f"{entry['architecture']}.{index.timm_tag(name)}"] = default_cfg(
                entry["architecture"], **entry["pretrained_cfg"], **index.source(name)
            )
    # Last and starred: the bare name stays a plain RGB net without weights, not the release that comes first.
    return cfgs | {f"{name}.*": default_cfg(name) for name in ARCHITECTURES}


default_cfgs = generate_default_cfgs(_tagged_cfgs())


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """He et al.'s thin CIFAR net, 3 x 3 basic blocks of 16, 32, 64 channels: 0.27 M parameters, 64 features."""
    return _create("resnet20_cifar", pretrained, kwargs, block=BasicBlock, layers=(3, 3, 3), channels=(16, 32, 64))


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 with the CIFAR stem: 11.2 M parameters, 512 features."""
    return _create("resnet18_cifar", pretrained, kwargs, block=BasicBlock, layers=(2, 2, 2, 2))


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34 with the CIFAR stem: 21.3 M parameters, 512 features."""
    return _create("resnet34_cifar", pretrained, kwargs, block=BasicBlock, layers=(3, 4, 6, 3))


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 with the CIFAR stem: 23.5 M parameters, 2048 features."""
    return _create("resnet50_cifar", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def resnet101_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101 with the CIFAR stem: 42.5 M parameters, 2048 features."""
    return _create("resnet101_cifar", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 23, 3))


class Projector(nn.Module):
    """Linear - ReLU - Linear, then L2 normalisation (SPEC section 2); dropped after training.

    Args:
        in_features: width of the encoder's pooled features.
        hidden: width of the hidden layer; 0 is ``in_features``.
        out_features: dimensions of the embedding.
    """

    def __init__(self, in_features: int, hidden: int = 0, out_features: int = 128) -> None:
        super().__init__()
        hidden = hidden or in_features
        self.layers = nn.Sequential(
            nn.Linear(in_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_features)
        )

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_features] to [N, out_features] with rows of norm 1, in float32 (float64 for float64 weights)."""
        rows: Tensor = self.layers(features)
        return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
