"""Integer layers and the fused block on NVIDIA GPUs, in Triton.

Written for, and never run on, a GPU: the numbers were checked in Triton's interpreter on the CPU, and every kernel
compiles for sm_80 and sm_90 to int8 tensor-core instructions. What only a GPU can show is unknown: speed, the choice of
blocks, CUDA graphs, torch.compile's code, the copies of streamed weights beside the computation. The tests check all of
this but the speed where there is a GPU: `pytest tests/backends/cuda/test_int8_cuda.py`.
"""
