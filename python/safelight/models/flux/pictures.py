"""How samples of the FLUX.1 pipelines begin: from text, or from a picture that is changed in part
(dev, schnell), filled in (Fill) or edited (Kontext)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxInpaintPipeline
from diffusers.utils.torch_utils import randn_tensor

from safelight.config import EngineConfig
from safelight.models import samplers
from safelight.models.flux.base import Conditioning, FluxBase, FluxSession
from safelight.models.flux.spec import preferred
from safelight.models.inputs import image
from safelight.models.pictures import fitted
from safelight.models.session import Kept
from safelight.parallel.mesh import Mesh
from safelight.request import SampleSpec


class FluxFamily(FluxBase):
    """`FluxPipeline`, and the pipelines for image-to-image and inpainting of its components.

    With a picture the steps begin in their middle: `strength` says how early, and the latents are
    the picture's with so much noise.
    """

    def __init__(self, pipeline: Any, mesh: Mesh, config: EngineConfig) -> None:
        super().__init__(pipeline, mesh, config)
        sibling = FluxInpaintPipeline(**pipeline.components)
        self._images, self._masks = sibling.image_processor, sibling.mask_processor

    # ----------------------------------------------------------------------------------- pictures

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        (picture,) = sample.inputs.images
        return (self._pictures.fitted(self._images, picture, sample.sampling),)

    def _mask(self, sample: SampleSpec) -> torch.Tensor:
        """Of the sample's mask: float32 [1, 1, height, width], 1 where it is painted."""
        assert sample.inputs.mask is not None, "the card lets no inpainting through without"
        return fitted(self._masks, sample.inputs.mask, sample.sampling)

    # ------------------------------------------------------------------------------ the beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        generator = torch.Generator("cpu").manual_seed(sample.sampling.seed)
        if conditioning.pictures:
            picture = self._latents(conditioning.pictures[0].sample(generator))
            return self._from_picture(sample, conditioning, picture, generator)
        latents, ids = self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels // 4,
            sample.sampling.height,
            sample.sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        scheduler = self._scheduler(sample)
        return self._session(sample, conditioning, scheduler, latents=latents, image_ids=ids)

    def _latents(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE's, as the transformer knows them."""
        return self._scaling.scaled(latents).to(self.dtype)

    def _from_picture(
        self,
        sample: SampleSpec,
        conditioning: Conditioning,
        picture: torch.Tensor,
        generator: torch.Generator,
    ) -> FluxSession:
        """A session that begins with a picture's latents, [1, channels, rows, columns]."""
        scheduler = self._scheduler(sample)
        timesteps = samplers.left(scheduler, sample.sampling)
        noise = randn_tensor(picture.shape, generator, self.device, self.dtype)
        return self._session(
            sample,
            conditioning,
            scheduler,
            latents=self._packed(scheduler.scale_noise(picture, timesteps[:1], noise)),
            image_ids=self._ids(picture),
            kept=self._kept(sample, picture, noise),
        )

    def _kept(self, sample: SampleSpec, picture: torch.Tensor, noise: torch.Tensor) -> Kept | None:
        """What is kept of the picture, if there is a mask."""
        if sample.inputs.mask is None:
            return None
        mask = torch.nn.functional.interpolate(self._mask(sample), size=picture.shape[-2:])
        mask = mask.to(self.device, self.dtype).repeat(1, picture.shape[1], 1, 1)
        return Kept(self._packed(picture), self._packed(noise), self._packed(mask))

    def _ids(self, latents: torch.Tensor) -> torch.Tensor:
        """Positions of tokens: [tokens, 3]"""
        rows, columns = latents.shape[-2:]
        ids: torch.Tensor = self.pipeline._prepare_latent_image_ids(
            1, rows // 2, columns // 2, self.device, self.dtype
        )
        return ids

    def _packed(self, latents: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = self.pipeline._pack_latents(latents, *latents.shape)
        return packed


class FillFamily(FluxFamily):
    """`FluxFillPipeline`: tokens have what is kept of the picture, and the mask, as channels."""

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        """The picture, and the picture without what is to be painted."""
        (picture,), mask, size = sample.inputs.images, sample.inputs.mask, sample.sampling
        assert mask is not None, "the card lets no inpainting through without"

        def kept() -> torch.Tensor:
            return fitted(self._images, picture, size) * (1 - self._mask(sample))

        key = (picture.digest, mask.digest, size.width, size.height)
        return self._pictures.fitted(self._images, picture, size), self._pictures.encode(key, kept)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        sampling, (whole, kept) = sample.sampling, conditioning.pictures
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        picture = self._latents(whole.sample(generator))
        session = self._from_picture(sample, conditioning, picture, generator)
        mask, left = self.pipeline.prepare_mask_latents(
            self._mask(sample),
            kept.sample(generator),  # encoded already: it scales and packs them
            1,
            picture.shape[1],
            1,
            sampling.height,
            sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        session.channels = torch.cat((left, mask), dim=-1)
        return session

    def _kept(self, *_: Any) -> None:
        """Nothing: the transformer knows what is kept."""


class KontextFamily(FluxFamily):
    """`FluxKontextPipeline`, and its sibling for inpainting: the picture's tokens follow those of
    the latents."""

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        (picture,) = sample.inputs.images
        width, height = preferred(picture.size, 2 * self.pipeline.vae_scale_factor)

        def pixels() -> torch.Tensor:
            processor = self.pipeline.image_processor
            resized = processor.resize(image(picture), height, width)
            made: torch.Tensor = processor.preprocess(resized, height, width)
            return made

        return (self._pictures.encode((picture.digest, width, height), pixels),)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        generator = torch.Generator("cpu").manual_seed(sample.sampling.seed)
        pictures = [self._latents(picture.mode()) for picture in conditioning.pictures]
        if sample.inputs.mask is not None:
            session = self._from_picture(sample, conditioning, pictures[0], generator)
        else:
            session = self._from_text(sample, conditioning, generator)
        for picture in pictures:
            ids = self._ids(picture)
            ids[:, 0] = 1
            session.image_ids = torch.cat([session.image_ids, ids])
            session.references = self._packed(picture)
        return session

    def _from_text(
        self, sample: SampleSpec, conditioning: Conditioning, generator: torch.Generator
    ) -> FluxSession:
        latents, _, ids, _ = self.pipeline.prepare_latents(
            None,
            1,
            self.transformer.config.in_channels // 4,
            sample.sampling.height,
            sample.sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        scheduler = self._scheduler(sample)
        return self._session(sample, conditioning, scheduler, latents=latents, image_ids=ids)
