"""What the thesis reports, to stand beside what is measured here (SPEC section 6). Standard library only."""

from __future__ import annotations

# Top-1 in percent as the thesis reports it, and where.
_CE_NOTE = "Table 5.1; SupContrast's figure, 500 epochs"
REPORTED: dict[str, tuple[float, str]] = {
    "ce_resnet50_cifar10": (95.0, _CE_NOTE),
    "ce_resnet50_cifar10.supcontrast": (95.0, _CE_NOTE),
    "supcon_resnet50_cifar10": (96.3, "Table 5.1"),
    "tcl_resnet50_cifar10": (96.4, "Table 5.1"),
    "ce_resnet50_cifar100": (75.3, _CE_NOTE),
    "ce_resnet50_cifar100.supcontrast": (75.3, _CE_NOTE),
    "supcon_resnet50_cifar100": (79.1, "Table 5.1"),
    "tcl_resnet50_cifar100": (79.8, "Table 5.1"),
    "ce_resnet50_fmnist": (94.5, "Table 5.1"),
    "supcon_resnet50_fmnist": (95.5, "Table 5.1"),
    "tcl_resnet50_fmnist": (95.7, "Table 5.1"),
    "ce_resnet18_imagenet100": (84.2, "Table 5.1"),
    "supcon_resnet18_imagenet100": (85.9, "Table 5.1"),
    "tcl_resnet18_imagenet100": (86.7, "Table 5.1"),
    "supcon_resnet34_imagenet100": (86.5, "section 5.2.1"),
    "tcl_resnet34_imagenet100": (87.2, "section 5.2.1"),
    "supcon_resnet50_cifar10.e250": (96.7, "Table A.1"),
    "tcl_resnet50_cifar10.e250": (96.8, "Table A.1"),
    "supcon_resnet50_cifar100.e250": (81.0, "Table A.1"),
    "tcl_resnet50_cifar100.e250": (81.6, "Table A.1"),
    "supcon_resnet50_fmnist.e250": (95.5, "Table A.1"),
    "tcl_resnet50_fmnist.e250": (95.7, "Table A.1"),
    "supcon_resnet18_imagenet100.e250": (86.5, "Table A.1"),
    "tcl_resnet18_imagenet100.e250": (87.1, "Table A.1"),
    "supcon_resnet50_cifar100.v128": (74.79, "mean of 30 runs, 95% CI 0.23"),
    "tcl_resnet50_cifar100.v128": (75.72, "mean of 30 runs, 95% CI 0.16"),
}

# Table 5.2, ResNet-18: CIFAR-10, CIFAR-100, ImageNet-100.
_TABLE_5_2 = {
    "byol": (92.6, 70.2, 80.1),
    "dino": (89.2, 66.4, 74.8),
    "simsiam": (90.5, 65.9, 77.0),
    "moco": (92.9, 69.5, 78.2),
    "ressl": (90.6, 65.8, 76.6),
    "vicreg": (90.1, 68.5, 79.2),
    "swav": (89.2, 64.7, 74.3),
    "wmse": (88.2, 61.3, 69.1),
    "arb.p256": (91.8, 68.2, 74.9),
    "arb": (92.2, 69.6, 79.5),
    "barlow.p256": (87.4, 57.9, 67.2),
    "barlow": (89.6, 69.2, 78.6),
    "simclr": (90.7, 65.5, 77.5),
    "tcl_ssl": (91.8, 67.2, 78.4),
}
for _method, _figures in _TABLE_5_2.items():
    _objective, _dot, _variant = _method.partition(".")
    for _dataset, _figure in zip(("cifar10", "cifar100", "imagenet100"), _figures, strict=True):
        REPORTED[f"{_objective}_resnet18_{_dataset}{_dot}{_variant}"] = (_figure, "Table 5.2")
REPORTED |= {"tcl_resnet18_cifar10": (95.8, "Table 5.2"), "tcl_resnet18_cifar100": (77.5, "Table 5.2")}


def reported(name: str) -> tuple[float, str] | None:
    """The thesis's top-1 in percent for a name and where it stands, or None."""
    return REPORTED.get(name)
