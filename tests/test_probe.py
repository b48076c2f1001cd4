"""Probes against scikit-learn on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

import tcl_zoo
from tcl_zoo import cli
from tcl_zoo.datasets import Split, load, pretrained_cfg
from tcl_zoo.features import features, predict
from tcl_zoo.probe import fit_linear, knn_probe, linear_probe
from tcl_zoo.recipes import override, recipe


@pytest.fixture(scope="module")
def splits():
    return load("digits"), load("digits", split="test")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = tcl_zoo.create_model("tcl_resnet20_digits")
    net.pretrained_cfg = pretrained_cfg("digits")
    return net


@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_cached_fit_is_logistic_regression(model, splits, C):
    train, test = splits
    x, y = (features(model, s) for s in splits)
    scaler = StandardScaler().fit(x.numpy())
    theirs = LogisticRegression(C=C, max_iter=2000, tol=1e-6).fit(scaler.transform(x.numpy()), train.labels.numpy())
    ours = fit_linear(x, train.labels, 10, C)
    expected = theirs.score(scaler.transform(y.numpy()), test.labels.numpy())
    got = (ours(y).argmax(1) == test.labels).double().mean()
    assert abs(100 * got - 100 * expected) <= 0.1
    if C > 1:  # hardly regularised: the optimum is flat, the decisions are the same
        return
    torch.testing.assert_close(
        ours(y).softmax(1).double(), torch.from_numpy(theirs.predict_proba(scaler.transform(y.numpy()))).double(),
        atol=5e-3, rtol=0,
    )  # fmt: skip


def test_constant_feature_is_harmless(splits):
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    x[:, 3] = 7.0
    layer = fit_linear(x, (x[:, 0] > 0).long(), 2)
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("k", [1, 20, 200])
def test_knn_is_scikit_learns(model, splits, k):
    train, test = splits
    x, y = (features(model, s).numpy() for s in splits)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = 100 * theirs.fit(x, train.labels.numpy()).score(y, test.labels.numpy())
    (result,) = knn_probe(model, train, test, k=k)
    assert abs(result.top1 - expected) <= 100 / len(test) + 1e-9  # a tie may fall the other way
    assert result.protocol == f"knn{k}" and result.n == len(test)


def test_encoder_stays_in_eval_mode_and_is_unchanged(model, splits):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    linear_probe(model, *splits)
    assert model.training  # put back
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_features_are_the_pooled_ones(model, splits):
    encoder = timm.create_model("resnet20_cifar", num_classes=0, in_chans=1).eval()
    encoder.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")})
    info = pretrained_cfg("digits")
    images = (splits[1].images.float() / 255 - info["mean"][0]) / info["std"][0]
    with torch.no_grad():
        torch.testing.assert_close(features(model, splits[1]), encoder(images), rtol=1e-4, atol=1e-5)


def test_thesis_protocol(released, splits):
    trained = tcl_zoo.create_model("tcl_resnet20_digits.e1", pretrained=True, weights_dir=released)
    plan = override(recipe("tcl_resnet20_digits"), ["probe_epochs=3"])
    result = linear_probe(trained, *splits, protocol="thesis", recipe=plan)
    cached = linear_probe(trained, *splits)
    assert result.top1 > 50 and result.protocol == "thesis" and cached.top1 >= result.top1 - 0.2
    torch.manual_seed(123)  # neither the generator's state
    again = linear_probe(trained, *splits, protocol="thesis", recipe=plan)
    assert torch.equal(again.classifier.weight, result.classifier.weight)
    with pytest.raises(ValueError, match="needs the recipe"):
        linear_probe(trained, *splits, protocol="thesis")
    with pytest.raises(ValueError, match="unknown protocol"):
        linear_probe(trained, *splits, protocol="x")


def test_any_timm_model(splits):
    """A colour model of another family on gray images: channels are repeated, the result is a figure."""
    torch.manual_seed(0)
    other = timm.create_model("resnet10t", num_classes=0)
    train, test = splits
    few = Split(train.images[:150], train.labels[:150], train.classes)
    result = linear_probe(other, few, Split(test.images[:50], test.labels[:50], test.classes))
    assert result.top1 > 30
    assert predict(timm.create_model("resnet20_cifar", in_chans=3), test).shape == (360, 10)


def test_figures_are_of_float32_on_any_device():
    """TF32 keeps 10 bits of 23: a GPU that rounds to it would not agree with the CPU that verifies."""
    from tcl_zoo.features import frozen

    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark
    with frozen(torch.nn.Identity()):
        assert not cudnn.allow_tf32 and cudnn.enabled and not torch.backends.cuda.matmul.allow_tf32
    assert (cudnn.allow_tf32, cudnn.enabled, cudnn.benchmark) == before


def test_thesis_protocol_prepares_images_as_the_measurement_does(released, splits):
    """By the model's own configuration, not by the data set's mean and deviation."""
    plan = override(recipe("tcl_resnet20_digits"), ["probe_epochs=1"])
    model = tcl_zoo.create_model("tcl_resnet20_digits.e1", pretrained=True, weights_dir=released)
    means: list[float] = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: means.append(float(inputs[0].mean())))
    model.pretrained_cfg["mean"] = [100.3054]
    linear_probe(model, *splits, protocol="thesis", recipe=plan, device="cpu")
    assert len(means) > 2 and max(means) < -200


def test_command_computes_features_once(released, monkeypatch, capsys):
    import tcl_zoo.features as rooms

    calls, real = [], rooms.extract
    monkeypatch.setattr(rooms, "extract", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    args = ["--weights-dir", str(released), "--knn", "5", "20", "--device", "cpu"]
    assert cli.main(["probe", "tcl_resnet20_digits.e1", *args]) == 0
    out = capsys.readouterr().out
    assert len(calls) == 2
    assert all(word in out for word in ("features", "linear, cached", "knn5", "knn20"))


def test_the_thesis_protocol_is_one_for_all_encoders(model, splits, monkeypatch):
    """Its SGD does not go by what the encoder was trained with."""
    seen, sgd = [], torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *args, **kwargs: (seen.append(kwargs), sgd(*args, **kwargs))[1])
    for name in ("byol_resnet20_digits", "tcl_resnet20_digits"):
        plan = override(recipe(name), ["probe_epochs=1", "momentum=0.5"])
        linear_probe(model, *splits, protocol="thesis", recipe=plan)
    assert seen == [{"momentum": 0.9, "weight_decay": 1e-4}] * 2
