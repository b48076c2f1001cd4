"""The registered architectures behave as timm's own, and torchvision agrees where the nets are the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import TestTimePoolHead, apply_test_time_pool
from torch import nn

from tcl_zoo import create_model
from tcl_zoo.encoders import ARCHITECTURES, Projector

SMALL = ("resnet20_cifar", "resnet18_cifar")
PARAMETERS = {  # of the 10-class, RGB net
    "resnet20_cifar": 272_474,  # He et al.: 0.27 M, here with 1x1 shortcuts
    "resnet18_cifar": 11_173_962,
    "resnet34_cifar": 21_282_122,
    "resnet50_cifar": 23_520_842,
    "resnet101_cifar": 42_512_970,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_and_stem(name):
    model = timm.create_model(name, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1)
    assert isinstance(model.maxpool, nn.Identity)
    assert model.num_features == {"resnet20": 64, "resnet18": 512, "resnet34": 512}.get(name.split("_")[0], 2048)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_registered(name):
    assert timm.is_model(name)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_same_function_as_torchvision(name):
    import torchvision

    ours = timm.create_model(f"{name}_cifar", num_classes=10).eval()
    theirs = torchvision.models.get_model(name, num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    theirs.maxpool = nn.Identity()
    state = {key: value for key, value in ours.state_dict().items()}
    for key, value in state.items():
        if value.ndim == 1:  # the last batch norm of a block begins at 0 and would hide all before it
            state[key] = torch.rand_like(value) + 0.5
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))


def test_resnet20_is_that_of_its_paper():
    """He et al. 2016, section 4.2, block by block (their option B: shortcuts of 1x1 convolutions)."""
    net = timm.create_model("resnet20_cifar", num_classes=10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.randn(2, 3, 32, 32)
    y = net.bn1(F.conv2d(x, net.conv1.weight, padding=1)).relu()
    for stage, width in enumerate((16, 32, 64)):
        for k, block in enumerate(getattr(net, f"layer{stage + 1}")):
            stride = 2 if stage and not k else 1
            short = block.downsample[1](F.conv2d(y, block.downsample[0].weight, stride=2)) if stride == 2 else y
            y = block.bn1(F.conv2d(y, block.conv1.weight, stride=stride, padding=1)).relu()
            y = (block.bn2(F.conv2d(y, block.conv2.weight, padding=1)) + short).relu()
            assert y.shape == (2, width, 32 >> stage, 32 >> stage)
        assert k == 2
    torch.testing.assert_close(net(x), net.fc(y.mean((2, 3))))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("chans", "size"), [(3, 32), (1, 28), (1, 8)])
def test_shapes(name, chans, size):
    model = timm.create_model(name, num_classes=7, in_chans=chans).eval()
    x = torch.randn(2, chans, size, size)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape[1] == model.num_features
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    encoder = timm.create_model(name, num_classes=0, in_chans=chans).eval()
    assert encoder(x).shape == (2, encoder.num_features)


@pytest.mark.parametrize(
    ("name", "channels", "reductions"),
    [("resnet20_cifar", [16, 16, 32, 64], [1, 1, 2, 4]), ("resnet18_cifar", [64, 64, 128, 256, 512], [1, 1, 2, 4, 8])],
)
def test_features_only(name, channels, reductions):
    model = timm.create_model(name, features_only=True).eval()
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == reductions
    maps = model(torch.randn(1, 3, 32, 32))
    assert [m.shape[1] for m in maps] == channels
    assert [32 // m.shape[2] for m in maps] == reductions
    last = timm.create_model(name, features_only=True, out_indices=(-1,))(torch.randn(1, 3, 32, 32))
    assert len(last) == 1 and last[0].shape[1] == channels[-1]


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_and_pruning(name):
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 32, 32)
    final, maps = model.forward_intermediates(x)
    assert len(maps) == len(model.feature_info)
    torch.testing.assert_close(final, model.forward_features(x))
    model.prune_intermediate_layers([1])
    assert model.forward_features(x).shape == maps[1].shape


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", SMALL)
def test_export(name):
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)


def test_compile():
    model = timm.create_model("resnet20_cifar", num_classes=5).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(x), model(x))


def test_grad_checkpointing_and_drop_path():
    model = timm.create_model("resnet20_cifar", num_classes=5, drop_path_rate=0.1)
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.conv1.weight.grad is not None


@pytest.mark.parametrize(
    "order",
    [
        "import tcl_zoo, timm",
        "import timm, tcl_zoo",
        "import timm.models; import tcl_zoo",
        "import tcl_zoo, importlib.util; importlib.util.find_spec('timm'); import timm",
    ],
)
def test_registration_in_either_order(order):
    code = (
        f"{order}; import sys; print(timm.create_model('resnet20_cifar', num_classes=0).num_features, "
        "[type(finder).__name__ for finder in sys.meta_path])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split()[0] == "64" and "TimmFinder" not in out.stdout


def test_import_loads_no_torch():
    code = "import sys, tcl_zoo; tcl_zoo.recipe('tcl_resnet50_cifar100'); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_projector():
    projector = Projector(64, out_features=32)
    assert [m.out_features for m in projector.layers if isinstance(m, nn.Linear)] == [64, 32]
    out = projector(torch.randn(5, 64).bfloat16().float())
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert all(m.bias is not None for m in projector.layers if isinstance(m, nn.Linear))
    assert Projector(64, 128).layers[0].out_features == 128


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_test_time_pooling_of_timms(name):
    """``pool_size`` is the map's at the size of training, so that timm's head says the same there."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        head = TestTimePoolHead(model, original_pool=model.default_cfg["pool_size"]).eval()
        torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def test_pool_size_of_a_release():
    """By every door: timm's tag, the name, the name untrained."""
    assert timm.get_pretrained_cfg("resnet20_cifar.tcl_digits").pool_size == (2, 2)
    for model in (create_model("tcl_resnet20_digits", pretrained=True), create_model("tcl_resnet20_digits")):
        assert model.pretrained_cfg["pool_size"] == (2, 2) and model.pretrained_cfg["input_size"][-1] == 8
    with torch.no_grad():
        tested, _ = apply_test_time_pool(model, {"input_size": (1, 16, 16)})
        assert tested.eval()(torch.randn(2, 1, 16, 16)).shape == (2, 10)
