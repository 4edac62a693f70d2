"""FCViT's layers as Triton kernels for CUDA, one module per layer; `dispatch` calls them.

Shape letters: B batch, d channels, H x W positions (N = H * W), 8 heads, e = d / 8, k kernel size.
Sums are taken in float32, of float64 in float64, and in a fixed order: results repeat bit by bit.
"""
