"""Kernels for NVIDIA GPUs, written in Triton; with TRITON_INTERPRET=1 they run on a CPU, slowly."""
