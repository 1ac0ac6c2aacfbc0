"""Norms, modulation and gates in Triton, each in one pass over memory.

All of them are memory-bound: a few operations per number read. In eager torch each elementary operation reads its
operands and writes its result; a fused kernel reads each operand once and writes the result once. Counted, not
measured: 8192 tokens of 1024 channels in fp16, forward values only, in units of such a tensor (16 MiB; float32 counts
2):

=================== ================================================================= ===== =====
what                eager: reads + writes                                             eager fused
=================== ================================================================= ===== =====
norm of q and k     each: cast 1+2, length 2, divide 2+2, gain 2+2, cast 2+1             32     4
norm, modulation    cast 1+2, norm 2+2, cast 2+1, scale 1+1, shift 1+1                   14     2
  packed also       shift, scale spread to rows 0+2, 1 + scale 1+1, both read 2+0        20     2
gate, residual      product 1+1, sum 2+1                                                  5     3
  packed also       gate spread to rows 0+1, read 1+0                                     7     3
=================== ================================================================= ===== =====

Why the norm of q and k is an op of its own: fused into attention's loads, each key would be normalised again for every
tile of queries; in the projection's epilogue, our own GEMM would have to replace the vendor's. A separate kernel costs
one read and one write of q and k.
"""
