"""What a model costs: multiply-accumulates and latency; and its export to ONNX."""
