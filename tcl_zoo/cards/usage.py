"""The lines of code on a card: to classify, to embed, to fine-tune, by timm and from a Hub."""

from __future__ import annotations

from typing import Any

from .. import index


def usage(config: dict[str, Any], repo_id: str | None) -> str:
    """Three lines each to classify, to embed, to fine-tune; then the same from the Hub."""
    name, features = config["tcl_zoo"]["name"], config["num_features"]
    ours = config["architecture"].endswith("_cifar")
    tag = f"{config['architecture']}.{index.timm_tag(name)}"
    own = f'import timm, tcl_zoo\n\nmodel = timm.create_model("{tag}", pretrained=True)'
    in_timm = f"In timm's own words:\n\n```python\n{own}\n```\n\n" if ours else ""
    imports = "import tcl_zoo, timm  # tcl_zoo registers the architecture" if ours else "import timm  # alone"
    place = repo_id or f"ORG/{name}"
    hub = "From the Hub" if repo_id else "Not on a Hub yet; once it is published as `ORG/NAME`"
    return f"""Classify:

```python
import tcl_zoo
from PIL import Image

name, image = "{name}", Image.open("image.png")
model, transform = tcl_zoo.create_model(name, pretrained=True).eval(), tcl_zoo.create_transform(name)
class_index = model(transform(image)[None]).argmax(1)
```

Features [N, {features}], and fine-tuning, here on 37 classes (a new head, everything trainable):

```python
encoder = tcl_zoo.create_model(name, pretrained=True, num_classes=0).eval()
features = encoder(transform(image)[None])
```

```python
import torch

model = tcl_zoo.create_model(name, pretrained=True, num_classes=37)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
```

{in_timm}{hub}, by timm, or checked against the sha256 that you give:

```python
{imports}

model = timm.create_model("hf-hub:{place}", pretrained=True)
```

```python
sha256 = "{config["tcl_zoo"]["sha256"]}"
model = tcl_zoo.create_model("hf-hub:{place}", pretrained=True, sha256=sha256)
```"""
