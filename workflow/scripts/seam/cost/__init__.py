"""The cost of a model: multiply-accumulates, latency, and the ONNX files that engines run."""
