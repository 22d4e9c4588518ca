"""Training: a typed recipe in, a directory with weights, metrics and a plot out.

``snnfast.train.config.load`` reads a recipe, ``snnfast.train.run.train`` runs it;
``snnfast.train.graphed`` is for loops of one's own. Nothing is imported here, so that reading a
recipe needs no torch.
"""


def __getattr__(name: str):
    if name != "graphed":
        raise AttributeError(f"module 'snnfast.train' has no attribute {name!r}")
    from snnfast.train.graph import graphed

    return graphed
