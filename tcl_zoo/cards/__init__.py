"""Model cards and the tables over them, written from ``config.json`` alone.

``trained`` is the card of a model of this zoo and ``finetuned`` that of somebody's own, ``usage`` the code on a card,
``text`` what they share; ``tables`` goes over all models.
"""

from .tables import side_by_side, zoo_table
from .text import interval
from .trained import card, metadata

__all__ = ["card", "interval", "metadata", "side_by_side", "zoo_table"]
