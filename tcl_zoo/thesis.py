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


def reported(name: str) -> tuple[float, str] | None:
    """The thesis's top-1 in percent for a name and where it stands, or None."""
    return REPORTED.get(name)
