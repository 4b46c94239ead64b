"""A simulated block of serial H&E sections with known expression: demo, docs and tests.

>>> from deepspace.simulate import BlockConfig, simulate_block
>>> block = simulate_block(BlockConfig.preset("tiny"))
>>> sorted(block.law["kind"].unique())
['image', 'mixed', 'neighbours', 'none']
"""

from deepspace.simulate.block import Block, SimulatedSection, simulate_block
from deepspace.simulate.config import Artefacts, BlockConfig, Genes
from deepspace.simulate.geometry import Transform

__all__ = [
    "Artefacts",
    "Block",
    "BlockConfig",
    "Genes",
    "SimulatedSection",
    "Transform",
    "simulate_block",
]
