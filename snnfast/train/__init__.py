"""Training: a typed recipe in, a directory with weights, metrics and a plot out.

``snnfast.train.config.load`` reads a recipe, ``snnfast.train.run.train`` runs it. Nothing is
imported here, so that reading a recipe needs no torch.
"""
