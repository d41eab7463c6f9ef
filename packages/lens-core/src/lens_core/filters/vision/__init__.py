"""The torch and ONNX room of the filters: entered only by filters that run a model."""
