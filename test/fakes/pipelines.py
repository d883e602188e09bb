"""Every pipeline that is tested, family by family. Adding one is a line here."""

from __future__ import annotations

import importlib

from fakes.cases import Case

ZOOS = (
    "zoo",
    "zoo_wan",
    "zoo_flux",
    "zoo_flux2",
    "zoo_sd3",
    "zoo_z_image",
    "zoo_ltx2",
    "zoo_hunyuan15",
    "zoo_qwen",
    "zoo_sdxl",
    "zoo_generic",
    "zoo_generic_unet",
    "zoo_generic_video",
)

CASES: tuple[Case, ...] = tuple(
    case for name in ZOOS for case in importlib.import_module(f"fakes.{name}").CASES
)
