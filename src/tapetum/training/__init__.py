"""Networks, data sets, one loop, recipes, evaluation, calibration, export; the only room that imports torch.

A recipe (TOML) names a network of `tapetum.training.networks`, sources of `tapetum.training.datasets` and the
numbers of the run; `tapetum.training.run` turns it into ``model.onnx`` and ``card.json``. A new network or
data set is a new entry in one of the two registries, never a new loop. Modules below `run` and `loop` need no
torch.
"""
