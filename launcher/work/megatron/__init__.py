"""Training on Megatron-core: any legal layout, CUDA with NCCL or CPU with gloo, from the same code."""
