"""Submanifold convolution in Triton as implicit GEMM."""
