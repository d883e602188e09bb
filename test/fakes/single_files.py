"""Transformers as one file, as their authors and others publish them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

WIDTH = 32  # what one Q8_0 block holds


def write_gguf(weights: Path, target: Path) -> Path:
    """The tensors of a safetensors file, matrices in Q8_0, as GGUF."""
    writer = gguf.GGUFWriter(target, "wan")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in load_file(weights).items():
        if tensor.ndim == 2 and tensor.shape[1] % WIDTH == 0:
            packed = gguf.quantize(tensor.astype(np.float32), kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
