"""What GPUs could do at best: dense bf16 matrix products with float32 sums, by the makers' data sheets."""

from __future__ import annotations

import re

PEAKS: list[tuple[str, float, str]] = [
    (r"NVIDIA B200", 2250, "NVIDIA, DGX B200 data sheet: 4.5 PFLOP/s with sparsity"),
    (r"NVIDIA H200 NVL", 835.5, "NVIDIA, H200 data sheet: 1,671 with sparsity"),
    (r"NVIDIA (H200|GH200)( .*)?", 989.5, "NVIDIA, H200 and GH200 data sheets: 1,979 with sparsity"),
    (r"NVIDIA H100 NVL", 835.5, "NVIDIA, H100 data sheet: 1,671 with sparsity"),
    (r"NVIDIA H100 PCIe", 756.5, "NVIDIA, H100 data sheet: 1,513 with sparsity"),
    (r"NVIDIA H100( 80GB HBM3| SXM5.*)?", 989.5, "NVIDIA, H100 data sheet: 1,979 with sparsity"),
    (r"(NVIDIA )?A100[- ].*", 312, "NVIDIA, A100 data sheet"),
    (r"NVIDIA A40", 149.7, "NVIDIA, A40 data sheet"),
    (r"NVIDIA A10", 125, "NVIDIA, A10 data sheet"),
    (r"NVIDIA L40S", 362, "NVIDIA, L40S data sheet"),
    (r"NVIDIA L4", 121, "NVIDIA, L4 data sheet: 242 with sparsity"),
    (r"NVIDIA GeForce RTX 4090", 165.2, "NVIDIA, Ada GPU architecture, appendix A"),
    (r"NVIDIA GeForce RTX 3090", 71, "NVIDIA, Ampere GA102 GPU architecture, appendix A"),
]
"""(pattern of the whole name, TFLOP/s, source). Half of what is told with sparsity."""


def known_peak(device: str) -> tuple[float, str] | None:
    """TFLOP/s of a device by the name that CUDA gives it, and the source; None if it is not in the table.

    A part of a GPU (MIG) is not: how much of the whole it can do depends on the part.
    """
    if "MIG" in device:
        return None
    return next(((peak, source) for pattern, peak, source in PEAKS if re.fullmatch(pattern, device)), None)
