"""The thesis as a command (``scripts/reproduce.py``): what stands behind each table and figure, run and drawn.

``grids`` has them as data, ``scale`` makes them smaller, ``plan`` joins both with seeds, ``runner`` trains what is not
done, ``results`` (with ``markdown`` and ``figures``) writes what came out, ``overview`` writes ``RESULTS.md``.
"""
