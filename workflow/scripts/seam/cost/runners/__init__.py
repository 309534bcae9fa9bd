"""The inference engines that time models, one module each.

A module has a function `open_engine(threads, batch_size)`. It returns the engine's description (`version` and
`instruction_set`) and a function that loads the model in an ONNX file for batches of that size. A loaded model is
(run, reason): `run` maps float32 images [batch_size, 3, H, W] to outputs, and `reason` says why another engine runs
this model, or is "".
"""
