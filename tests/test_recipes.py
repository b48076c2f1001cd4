"""Recipes against the tables of SPEC section 3, written again here."""

from __future__ import annotations

import math

import pytest

from tcl_zoo.datasets import DATASETS
from tcl_zoo.errors import RecipeError
from tcl_zoo.recipes import DATA, flat, from_dict, names, override, recipe
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
    assert (tcl.probe_batch, supcon.probe_batch) == (views // 2, views // 2)


def test_stability_recipes():
    for encoder, lr in (("resnet18", 0.1), ("resnet34", 0.1), ("resnet101", 0.09)):
        r = recipe(f"tcl_{encoder}_cifar100")
        assert (r.batch_views, r.lr, r.k1) == (128, lr, 5000)
    lrs, k1s = (0.008, 0.009, 0.1, 0.2, 0.5, 1.0), (5000, 7500, 5000, 4000, 4000, 4000)
    for views, lr, k1 in zip((32, 64, 128, 256, 512, 1024), lrs, k1s, strict=True):
        r = recipe(f"tcl_resnet50_cifar100.v{views}")
        assert (r.batch_views, r.lr, r.k1, r.probe_batch) == (views, lr, k1, views // 2)
        assert recipe(f"supcon_resnet50_cifar100.v{views}").k1 == 0
    for dim in (64, 128, 256, 512, 1024, 2048):
        r = recipe(f"tcl_resnet50_cifar100.p{dim}")
        assert (r.projector_dim, r.batch_views, r.lr, r.k1) == (dim, 128, 0.1, 5000)
    r = recipe("tcl_resnet50_cifar100.simaug")
    assert (r.augmentation, r.k2, r.epochs, r.batch_views) == ("simaugment", 1.2, 200, 128)
    assert recipe("tcl_resnet50_cifar10.e250").epochs == 200
    assert recipe("ce_resnet50_cifar10.supcontrast").epochs == 500
    assert recipe("tcl_resnet34_imagenet100").batch_views == 128


def test_the_small_encoder_has_a_wide_projector_where_there_are_many_classes():
    """SPEC section 7; 0 is the width of the encoder."""
    for name in ("tcl_resnet20_cifar100", "supcon_resnet20_cifar100.e40"):
        assert recipe(name).projector_hidden == 512
    for name in ("tcl_resnet20_cifar10", "ce_resnet20_cifar100", "tcl_resnet50_cifar100", "tcl_resnet18_cifar100"):
        assert recipe(name).projector_hidden == 0


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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [("byol", "views=3 batch_views=384", "byol compares two views"),
     ("barlow", "views=1", "barlow compares two views"),
     ("tcl_ssl", "views=1", "views must be at least 2"), ("dino", "views=1", "views must be at least 2"),
     ("simsiam", "batch_views=2", "a step needs 2 images"), ("byol", "projector_hidden=0", "projector_hidden must be"),
     ("moco", "options.queue_size=0", "queue_size must be a whole number from 1"),
     ("byol", "options.predictor_hidden=0", "predictor_hidden must be a whole"),
     ("swav", "options.prototypes=0", "prototypes must be a whole"),
     ("swav", "options.sinkhorn_iterations=0", "sinkhorn_iterations must be a whole"),
     ("swav", "options.sinkhorn_epsilon=0", "sinkhorn_epsilon must be above 0"),
     ("wmse", "options.whitening_size=0", "whitening_size must be a whole"),
     ("moco", "options.queue_size=1000000000000", "queue_size must be a whole number from 1 to 1000000"),
     ("dino", "options.crop_split=0.05", "crop_split must be above 0.05"),
     ("byol", "options.ema_base=1.5", "ema_base must be at most 1"),
     ("dino", "options.teacher_temperature=0", "teacher_temperature must be above 0")],
)  # fmt: skip
def test_what_cannot_work_without_labels_is_refused(name, settings, message):
    with pytest.raises(RecipeError, match=message):
        override(recipe(f"{name}_resnet20_digits"), settings.split())


def test_half_an_option_is_refused():
    fields = recipe("moco_resnet20_digits").to_dict()
    with pytest.raises(RecipeError, match="queue_size must be a whole number"):
        from_dict({**fields, "options": {**fields["options"], "queue_size": 2.5}})
    assert override(recipe("swav_resnet20_digits"), ["views=3", "batch_views=384"]).views == 3


def test_flat_fields_are_those_of_set():
    fields = flat(recipe("byol_resnet20_digits").to_dict())
    assert fields["options.ema_base"] == recipe("byol_resnet20_digits").options["ema_base"]
    assert all(isinstance(value, (int, float, str)) for value in fields.values()) and "options" not in fields
    again = [f"{k}={v}" for k, v in fields.items() if k not in ("name", "objective", "encoder", "dataset", "variant")]
    assert override(recipe("byol_resnet20_digits"), again) == recipe("byol_resnet20_digits")


# Table 5.2, typed out from the SPEC: method: CIFAR-10, CIFAR-100, ImageNet-100.
TABLE_5_2 = """BYOL 4096: 92.6 70.2 80.1 · DINO 256: 89.2 66.4 74.8 · SimSiam 2048: 90.5 65.9 77.0 · MoCo 256: 92.9 69.5
78.2 · ReSSL 256: 90.6 65.8 76.6 · VICReg 2048: 90.1 68.5 79.2 · SwAV 256: 89.2 64.7 74.3 · WMSE 256: 88.2 61.3 69.1 ·
ARB 256: 91.8 68.2 74.9 · ARB 2048: 92.2 69.6 79.5 · Barlow 256: 87.4 57.9 67.2 · Barlow 2048: 89.6 69.2 78.6 ·
SimCLR 256: 90.7 65.5 77.5 · TCL_SSL 256: 91.8 67.2 78.4"""


@pytest.mark.parametrize("entry", TABLE_5_2.split("·"))
def test_self_supervised_table(entry):
    method, _, rest = entry.strip().partition(" ")
    size, _, figures = rest.partition(":")
    for dataset, figure in zip(("cifar10", "cifar100", "imagenet100"), figures.split(), strict=True):
        variant = ".p256" if (method, size) in (("ARB", "256"), ("Barlow", "256")) else ""
        r = recipe(f"{method.lower()}_resnet18_{dataset}{variant}")
        assert reported(r.name) == (float(figure), "Table 5.2")
        assert r.self_supervised and r.needs_probe
        assert (r.epochs, r.batch_images) == (400 if dataset == "imagenet100" else 1000, 256)
        assert (r.warmup_epochs, r.probe_epochs, r.probe_lr) == (10, 100, 0.5)
        if method not in ("SwAV", "WMSE"):  # 128 and 64 in solo-learn, where the table's figures come from
            assert int(size) in (r.projector_dim, r.projector_hidden)


def test_tcl_without_labels_is_the_theses():
    """SPEC section 5."""
    for dataset, hidden in (("cifar10", 2048), ("cifar100", 2048), ("imagenet100", 4096)):
        r = recipe(f"tcl_ssl_resnet18_{dataset}")
        assert (r.objective, r.encoder, r.dataset) == ("tcl_ssl", "resnet18", dataset)
        assert (r.views, r.k1, r.k2, r.temperature, r.lr, r.weight_decay) == (3, 1, 1.5, 0.2, 0.5, 1e-4)
        assert (r.optimizer, r.momentum, r.augmentation) == ("lars", 0.9, "simaugment_blur")
        assert (r.projector_hidden, r.projector_dim) == (hidden, 256)
        simclr = recipe(f"simclr_resnet18_{dataset}")
        assert (simclr.views, simclr.k1, simclr.k2) == (2, 0, 1)
    assert recipe("tcl_ssl_resnet18_cifar10.views4").batch_images == 256
    assert recipe("tcl_ssl_resnet20_digits.views4").batch_images == recipe("tcl_ssl_resnet20_digits").batch_images


def test_warm_up_then_cosine():
    import torch

    r = recipe("byol_resnet18_cifar10")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=r.lr)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 10, total_iters=9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 990)
    for epoch in range(1000):
        assert math.isclose(optimizer.param_groups[0]["lr"], r.lr_at(epoch), rel_tol=1e-6, abs_tol=1e-12), epoch
        optimizer.step()
        (warm if epoch < 9 else cosine if epoch > 9 else optimizer).step()
    assert recipe("tcl_resnet20_digits").lr_at(0) == 0.1
    assert [recipe(f"ce_resnet50_cifar100{v}").warmup_epochs for v in ("", ".supcontrast")] == [0, 10]


def test_options():
    base = recipe("dino_resnet20_cifar10.e40")
    assert base.options["warmup_temperature_epochs"] == 2 and base.warmup_epochs == 4
    changed = override(base, ["options.prototypes=32", "epochs=41", "options.ema_base=0.5"])
    assert (changed.options["prototypes"], changed.options["ema_base"], changed.epochs) == (32, 0.5, 41)
    assert base.options["prototypes"] == 256, "the recipe itself is left alone"
    refused = [("options.prototype=3", "did you mean options.prototypes"), ("options=3", "unknown recipe field"),
               ("options.prototypes=x", "takes int"), ("options.ema_base=-1", "must be finite"),
               ("epochs=4", r"warmup_epochs \(4\) must lie below epochs \(4\)"), ("optimizer=sdg", "unknown optimizer"),
               ("probe_augmentation=x", "unknown augmentation")]  # fmt: skip
    for setting, message in refused:
        with pytest.raises(RecipeError, match=message):
            override(base, [setting])


def test_recipes_of_older_versions():
    """config.json and recipe.json written before the fields of the self-supervised recipes."""
    new = recipe("tcl_resnet20_digits")
    old = {
        k: v
        for k, v in new.to_dict().items()
        if k not in ("optimizer", "warmup_epochs", "probe_augmentation", "options")
    }
    assert from_dict(old) == new


def test_reported_figures():
    assert reported("tcl_resnet50_cifar100") == (79.8, "Table 5.1")
    assert reported("supcon_resnet50_cifar10.e250") == (96.7, "Table A.1")
    assert reported("tcl_resnet20_digits") is None
    listed = set(names())
    assert set(REPORTED) <= listed


def test_the_linear_phase_follows_the_batch():
    """SPEC section 3: as many images a step as the contrastive phase; what is asked for stays."""
    base = recipe("tcl_resnet50_cifar100")
    assert override(base, ["batch_views=64"]).probe_batch == 32
    assert override(base, ["lr=0.1"]).probe_batch == 128
    assert override(base, ["batch_views=64", "probe_batch=100"]).probe_batch == 100
    assert recipe("tcl_ssl_resnet18_cifar10").probe_batch == 256


def test_resnet34_on_imagenet100_is_one_of_the_recipes_of_128_views():
    tcl, supcon = (recipe(f"{objective}_resnet34_imagenet100") for objective in ("tcl", "supcon"))
    assert (tcl.batch_views, tcl.lr, tcl.k1) == (128, 0.1, 5000.0)
    assert (supcon.batch_views, supcon.lr, supcon.k1, supcon.k2) == (128, 0.1, 0.0, 1.0)


@pytest.mark.parametrize("name", ["supcon_resnet50_cifar10", "simclr_resnet18_cifar10"])
@pytest.mark.parametrize("setting", ["k1=7", "k2=2"])
def test_k1_and_k2_are_tcls(name, setting):
    with pytest.raises(RecipeError, match="k1 is 0 and k2 is 1 here"):
        override(recipe(name), [setting])
    assert override(recipe("tcl_resnet50_cifar10"), [setting])


def test_a_shorter_schedule_keeps_the_teachers_share_of_it():
    """The momentum is that of the whole schedule over as many times fewer steps, but no faster than 0.99."""
    bases = [recipe(f"dino_resnet18_cifar10{v}").options["ema_base"] for v in ("", ".e500", ".e100", ".e40")]
    assert bases == [0.9995, 0.999, 0.995, 0.99]
    assert {recipe(f"byol_resnet18_cifar10{v}").options["ema_base"] for v in ("", ".e500", ".e40")} == {0.99}
