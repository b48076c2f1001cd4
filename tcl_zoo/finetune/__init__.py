"""Transfer to images of one's own: a released encoder, or any timm model, in; a release folder out.

The step is ``Tuner.step`` in ``tuner.py``; ``loop.py`` goes through the epochs, ``export.py`` writes the folder.
"""

from .loop import FinetuneResult, finetune
from .plan import Plan

__all__ = ["FinetuneResult", "Plan", "finetune"]
