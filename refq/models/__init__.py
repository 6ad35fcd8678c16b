"""ONNX models: an index of the graph, weights as matrices, casting, export styles, report, a numpy engine."""
