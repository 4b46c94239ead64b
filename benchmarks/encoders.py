"""Features a second of each encoder, as a part of what a large matrix product reaches.

Each encoder is read as it is by default, through the code that predictions use: uint8 patches in,
pooled features out, batches of fixed size. Weights are random: they do not change the speed.
Operations are counted by torch, two a multiply-add; times are wall clock, the best of some.

    OMP_NUM_THREADS=1 python benchmarks/encoders.py [--encoder NAME]... [--patches 48] [--repeats 3]
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from deepspace.models.allocator import freed_memory_reused
from deepspace.models.encoders import Encoder, load_encoder, needs_weights
from deepspace.models.network import stained_patch
from train_cnn import MATRIX, Place, product, shortest

NAMES = ("stain", "vgg16", "resnet50", "dinov2-s")
# what was reached once on a machine of this kind, in bf16
ASKED = {"vgg16": 0.9, "resnet50": 0.55, "dinov2-s": 0.45}


def fused_operations(x: Any, weight: Any, *_: object, out_shape: list[int], **__: object) -> int:
    """Of a convolution with its ReLU, which torch does not count by itself."""
    return conv_flop_count(x, weight, out_shape)


def added_operations(
    _: Any, x: Any, weight: Any, *__: object, out_shape: list[int], **___: object
) -> int:
    """Of a convolution whose result is added to a map."""
    return conv_flop_count(x, weight, out_shape)


def attention_operations(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    """Of attention on a processor, which torch counts on a GPU only."""
    return int(sdpa_flop_count(query, key, value))


def dense_operations(x: Any, *_: Any, out_shape: list[int], **__: object) -> int:
    """Of a linear layer with what is done to its result."""
    return int(2 * math.prod(out_shape) * x[-1])


def operations(encoder: Encoder, patches: np.ndarray) -> int:
    """Floating point operations of these patches."""
    own = {
        torch.ops.mkldnn._convolution_pointwise: fused_operations,
        torch.ops.mkldnn._convolution_pointwise_: added_operations,
        torch.ops.mkldnn._linear_pointwise: dense_operations,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_operations,
    }
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        encoder(patches)
    return int(counter.get_total_flops())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", action="append")
    parser.add_argument("--patches", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s)")
    for precision in ("fp32", "bf16"):
        place = Place(torch.device("cpu"), precision)
        rate = 2 * MATRIX**3 / shortest(product(place, MATRIX), place, given.repeats)
        print(f"{precision}: matrix product {rate / 1e9:.0f} GFLOP/s")
        for name in given.encoder or NAMES:
            weights = "random:0" if needs_weights(name) else None
            encoder = load_encoder(name, weights=weights, fov_um=(150,), precision=precision)
            side = encoder.specs[0].size_px
            patches = np.repeat(stained_patch(side)[None], given.patches, axis=0)
            with freed_memory_reused():  # as for predictions
                seconds = shortest(partial(encoder, patches), place, given.repeats)
            line = f"  {name:10s} {given.patches / seconds:7.1f} patches/s of {side} px"
            if weights is not None:
                part = operations(encoder, patches) / seconds / rate
                asked = ASKED.get(name) if precision == "bf16" else None
                line += f", {part:.2f} of the product" + (f" (asked {asked})" if asked else "")
            print(line, flush=True)


if __name__ == "__main__":
    main()
