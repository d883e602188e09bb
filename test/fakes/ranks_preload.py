"""What the fork server of `fakes.ranks` imports once, for all its ranks."""

import diffusers  # noqa: F401
import torch
import transformers  # noqa: F401
from diffusers import WanPipeline  # noqa: F401

import safelight.models.registry
import safelight.parallel.mesh  # noqa: F401

torch.set_num_threads(1)
