"""Model cards and the tables over them, written from ``config.json`` alone.

``trained`` is the card of a model of this zoo and ``finetuned`` that of somebody's own, ``usage`` the code on a card,
``text`` what they share; ``tables`` goes over all models.
"""

from .tables import differences, seeds_of, side_by_side, zoo_table
from .trained import card, metadata

__all__ = ["card", "differences", "metadata", "seeds_of", "side_by_side", "zoo_table"]
