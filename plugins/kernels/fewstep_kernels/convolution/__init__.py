"""Submanifold convolution in Triton as an implicit matrix product."""
