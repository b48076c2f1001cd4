"""Recipes against the tables of SPEC section 3, written again here."""

from __future__ import annotations

import math

import pytest

from tcl_zoo.datasets import DATASETS
from tcl_zoo.errors import RecipeError
from tcl_zoo.recipes import DATA, from_dict, names, override, recipe
from tcl_zoo.thesis import REPORTED, reported

# dataset: encoder, views per step, lr SupCon, lr TCL, k1
TABLE = {
    "cifar10": ("resnet50", 128, 0.1, 0.1, 5000),
    "cifar100": ("resnet50", 256, 0.2, 0.2, 4000),
    "fmnist": ("resnet50", 128, 0.09, 0.09, 5000),
    "imagenet100": ("resnet18", 256, 0.2, 0.3, 4000),
}


@pytest.mark.parametrize("dataset", TABLE)
def test_main_table(dataset):
    encoder, views, lr_supcon, lr_tcl, k1 = TABLE[dataset]
    tcl, supcon, ce = (recipe(f"{objective}_{encoder}_{dataset}") for objective in ("tcl", "supcon", "ce"))
    assert (tcl.batch_views, tcl.batch_images, tcl.lr, tcl.k1, tcl.k2) == (views, views // 2, lr_tcl, k1, 1)
    assert (supcon.batch_views, supcon.lr, supcon.k1, supcon.k2) == (views, lr_supcon, 0, 1)
    assert (ce.views, ce.batch_images, ce.lr, ce.epochs) == (1, views, lr_supcon, 150)
    for r in (tcl, supcon, ce):
        assert (r.momentum, r.weight_decay, r.temperature, r.probe_lr, r.probe_epochs) == (0.9, 1e-4, 0.1, 0.5, 50)
        assert r.augmentation == ("crop_flip" if dataset == "fmnist" else "autoaugment_thesis")
    assert tcl.epochs == supcon.epochs == 100
    assert tcl.probe_batch == 64


def test_stability_recipes():
    for encoder, lr in (("resnet18", 0.1), ("resnet34", 0.1), ("resnet101", 0.09)):
        r = recipe(f"tcl_{encoder}_cifar100")
        assert (r.batch_views, r.lr, r.k1) == (128, lr, 5000)
    lrs, k1s = (0.008, 0.009, 0.1, 0.2, 0.5, 1.0), (5000, 7500, 5000, 4000, 4000, 4000)
    for views, lr, k1 in zip((32, 64, 128, 256, 512, 1024), lrs, k1s, strict=True):
        r = recipe(f"tcl_resnet50_cifar100.v{views}")
        assert (r.batch_views, r.lr, r.k1) == (views, lr, k1)
        assert recipe(f"supcon_resnet50_cifar100.v{views}").k1 == 0
    for dim in (64, 128, 256, 512, 1024, 2048):
        r = recipe(f"tcl_resnet50_cifar100.p{dim}")
        assert (r.projector_dim, r.batch_views, r.lr, r.k1) == (dim, 128, 0.1, 5000)
    r = recipe("tcl_resnet50_cifar100.simaug")
    assert (r.augmentation, r.k2, r.epochs, r.batch_views) == ("simaugment", 1.2, 200, 128)
    assert recipe("tcl_resnet50_cifar10.e250").epochs == 200
    assert recipe("ce_resnet50_cifar10.supcontrast").epochs == 500
    assert recipe("tcl_resnet34_imagenet100").batch_views == 128


def test_every_combination_has_a_name():
    listed = set(names())
    for objective in ("tcl", "supcon", "ce"):
        for encoder in ("resnet18", "resnet34", "resnet50", "resnet101"):
            for dataset in ("cifar10", "cifar100", "fmnist", "imagenet100"):
                assert f"{objective}_{encoder}_{dataset}" in listed
        assert f"{objective}_resnet20_digits" in listed
    for name in listed:
        r = recipe(name)
        assert r.name == name and from_dict(r.to_dict()) == r
    assert names("tcl_*cifar100*") and all("cifar100" in n and n.startswith("tcl_") for n in names("tcl_*cifar100*"))


def test_facts_agree_with_the_data_sets():
    for name, data in DATA.items():
        info = DATASETS[name]
        assert (data.image_size, data.in_chans, data.num_classes) == (info.size, info.channels, info.num_classes)


def test_architecture():
    assert recipe("tcl_resnet50_cifar100").architecture == "resnet50_cifar"
    assert recipe("tcl_resnet18_imagenet100").architecture == "resnet18"


def test_short_variants_fit_their_schedule():
    r = recipe("tcl_resnet20_cifar10.e40")
    assert r.epochs == 40 and r.lr_at(0) == pytest.approx(r.lr)
    assert recipe("ce_resnet20_cifar10.e40").epochs == 60
    # torch's own cosine, at every epoch
    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=r.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, r.epochs, eta_min=r.lr * 1e-3)
    for epoch in range(r.epochs):
        assert math.isclose(optimizer.param_groups[0]["lr"], r.lr_at(epoch), rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "name",
    ["tcl_resnet5_cifar10", "tcl_resnet50", "", "tcl_resnet50_cifar10.", "tcl_resnet50_cifar10.e101", "a.b.c",
     "ce_resnet50_cifar100.v128",
     "tcl_resnet20_imagenet100", "tcl_resnet50_cifar10.v128", "tcl_resnet50_cifar100.p100"],
)  # fmt: skip
def test_unknown_names(name):
    with pytest.raises(RecipeError, match="unknown model name"):
        recipe(name)


def test_unknown_name_offers_the_nearest():
    with pytest.raises(RecipeError, match="did you mean tcl_resnet50_cifar10"):
        recipe("tcl_resnet50_cifar1")


def test_override():
    r = override(recipe("tcl_resnet20_digits"), ["epochs=5", " lr = 0.05", "k2=1.5", "augmentation=none"])
    assert (r.epochs, r.lr, r.k2, r.augmentation) == (5, 0.05, 1.5, "none")
    assert r.name == "tcl_resnet20_digits"


@pytest.mark.parametrize(
    ("setting", "message"),
    [("epoch=5", "did you mean epochs"), ("epochs=five", "epochs takes int"), ("epochs=1.5", "epochs takes int"),
     ("epochs", "key=value"), ("k1=-1", "k1 must be"), ("k2=0", "k2 must be"), ("temperature=0", "temperature must"),
     ("temperature=nan", "temperature must"), ("lr=inf", "lr must"), ("epochs=0", "epochs must"),
     ("batch_views=127", "multiple of views"), ("augmentation=blah", "unknown augmentation"),
     ("encoder=resnet18", "part of the name"), ("zzz=1", "known: epochs")],
)  # fmt: skip
def test_override_refuses(setting, message):
    with pytest.raises(RecipeError, match=message):
        override(recipe("tcl_resnet20_digits"), [setting])


def test_reported_figures():
    assert reported("tcl_resnet50_cifar100") == (79.8, "Table 5.1")
    assert reported("supcon_resnet50_cifar10.e250") == (96.7, "Table A.1")
    assert reported("tcl_resnet20_digits") is None
    listed = set(names())
    assert set(REPORTED) <= listed
