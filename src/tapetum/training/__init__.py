"""Networks, data sets, one loop, recipes, evaluation, calibration, export; the only room that imports torch.

A recipe (TOML) says of which task it is (`tapetum.training.task`: stamps of alerts, masks of frames, tracking), and
names a network of `tapetum.training.networks`, sources of data and the numbers of the run; `tapetum.training.run`
turns it into ``model.onnx`` and ``card.json``. A new network, data set or task is a new entry in a registry, never a
new loop. Recipes, data, figures and cards need no torch.
"""
