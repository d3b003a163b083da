"""What is known to work for a class of operators, for the prompts of problems that use one."""

from __future__ import annotations

import ast
import re

_CONVOLUTION = """\
# Algorithm: convolutions (Conv1D, Conv2D, Conv3D and their transposes)
Slower than PyTorch? The usual root cause is a nest of loops over the kernel's elements (for kh: for kw: ...),
which has a very low compute density. Make it an implicit GEMM:
- the output is a matrix (N*OW, OC) in 1D, (N*OH*OW, OC) in 2D, (N*OD*OH*OW, OC) in 3D
- the weight is a matrix (OC, IC*KW) in 1D, (OC, IC*KH*KW) in 2D, (OC, IC*KD*KH*KW) in 3D
- the K dimension is IC * kernel_elements, in tiles of BLOCK_K
- the input position follows from (output_pos, k_offset) on the fly
- tl.dot() multiplies the tiles on Tensor Cores

for k in range(0, K, BLOCK_K):
    # decode k -> (ic, kd, kh, kw)
    # input address = output position + kernel offset
    # load an input tile [BLOCK_M, BLOCK_K] and a weight tile [BLOCK_K, BLOCK_N]
    acc += tl.dot(a_tile, b_tile)

Transposed: a tap reaches an output where (output + padding - tap * dilation) is a multiple of the stride.
Outputs of one phase, their position modulo the stride, share their taps: a GEMM per phase has no zeros.

Grouped: a GEMM per group, over IC / groups channels. Depthwise, with one channel a group, there is nothing to
multiply as matrices: sum on CUDA cores, and use each loaded patch of the input for several outputs.
"""
#: A name of torch's layers, as a regular expression -> what to say.
GUIDANCE = {r"Conv(Transpose)?[123]d": _CONVOLUTION}


def guidance(source: str) -> str:
    """Return what is known of the operators that a problem's code names, comments and strings aside."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    texts = [text for known, text in GUIDANCE.items() if any(re.fullmatch(known, name) for name in names)]
    return "\n".join(texts)
