"""Models: cards, registry, ONNX runtime, calibration, importers of foreign weights."""
