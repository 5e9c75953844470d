"""Models for inference: deployed, folded, tuned to the device, as CUDA graphs."""
