"""How samples of the FLUX.1 pipelines begin: from text, or from a picture that is changed in part
(dev, schnell), filled in (Fill) or edited (Kontext)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxInpaintPipeline
from diffusers.utils.torch_utils import randn_tensor

from safelight.config import EngineConfig
from safelight.models.flux.base import Conditioning, FluxBase, FluxSession, Repaint
from safelight.models.flux.spec import preferred
from safelight.models.inputs import image
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
        self._image_processor, self._mask_processor = (
            sibling.image_processor,
            sibling.mask_processor,
        )

    # ----------------------------------------------------------------------------------- pictures

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        key = (sample.inputs.images[0].digest, sample.sampling.width, sample.sampling.height)
        return (self._pictures.get(key, lambda: self._distribution(self._pixels(sample))),)

    def _pixels(self, sample: SampleSpec) -> torch.Tensor:
        """Of the sample's picture, as large as the output: float32 [1, 3, height, width] in
        [-1, 1]."""
        (picture,), sampling = sample.inputs.images, sample.sampling
        pixels: torch.Tensor = self._image_processor.preprocess(
            image(picture), height=sampling.height, width=sampling.width
        )
        return pixels

    def _mask(self, sample: SampleSpec) -> torch.Tensor:
        """Of the sample's mask: float32 [1, 1, height, width], 1 where it is painted."""
        assert sample.inputs.mask is not None, "the card lets no inpainting through without"
        sampling = sample.sampling
        mask: torch.Tensor = self._mask_processor.preprocess(
            image(sample.inputs.mask), height=sampling.height, width=sampling.width
        )
        return mask

    # ------------------------------------------------------------------------------ the beginning

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        generator = torch.Generator("cpu").manual_seed(sample.sampling.seed)
        if conditioning.pictures:
            picture = self._scaled(conditioning.pictures[0].sample(generator))
            return self._from_picture(sample, conditioning, picture, generator)
        latents, image_ids = self.pipeline.prepare_latents(
            1,
            self.transformer.config.in_channels // 4,
            sample.sampling.height,
            sample.sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        return self._from_noise(sample, conditioning, latents, image_ids)

    def _from_picture(
        self,
        sample: SampleSpec,
        conditioning: Conditioning,
        picture: torch.Tensor,
        generator: torch.Generator,
    ) -> FluxSession:
        """A session that begins with a picture's latents, [1, channels, rows, columns]."""
        scheduler = self._scheduler(sample)
        timesteps = _left(scheduler, sample)
        noise = randn_tensor(
            picture.shape, generator=generator, device=self.device, dtype=self.dtype
        )
        latents = self._packed(scheduler.scale_noise(picture, timesteps[:1], noise))
        ids = self._ids(picture)
        session = self._session(sample, conditioning, latents, ids, scheduler, timesteps)
        session.repaint = self._repaint(sample, picture, noise)
        return session

    def _repaint(
        self, sample: SampleSpec, picture: torch.Tensor, noise: torch.Tensor
    ) -> Repaint | None:
        """What is kept of the picture, if there is a mask."""
        if sample.inputs.mask is None:
            return None
        mask = torch.nn.functional.interpolate(self._mask(sample), size=picture.shape[-2:])
        mask = mask.to(self.device, self.dtype).repeat(1, picture.shape[1], 1, 1)
        return Repaint(self._packed(picture), self._packed(noise), self._packed(mask))

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


def _left(scheduler: Any, sample: SampleSpec) -> torch.Tensor:
    """The timesteps that `strength` leaves; tells the sampler that it begins with them."""
    steps, strength = sample.sampling.num_inference_steps, sample.sampling.strength or 1.0
    start = int(max(steps - min(steps * strength, steps), 0)) * scheduler.order
    scheduler.set_begin_index(start)
    left: torch.Tensor = scheduler.timesteps[start:]
    return left


class FillFamily(FluxFamily):
    """`FluxFillPipeline`: tokens have what is kept of the picture, and the mask, as channels."""

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        """The picture, and the picture without what is to be painted."""
        (picture,), mask, size = sample.inputs.images, sample.inputs.mask, sample.sampling
        assert mask is not None, "the card lets no inpainting through without"

        def see() -> tuple[Any, Any]:
            pixels = self._pixels(sample)
            kept = pixels * (1 - self._mask(sample))
            return self._distribution(pixels), self._distribution(kept)

        return self._pictures.get((picture.digest, mask.digest, size.width, size.height), see)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        sampling, (whole, kept) = sample.sampling, conditioning.pictures
        generator = torch.Generator("cpu").manual_seed(sampling.seed)
        picture = self._scaled(whole.sample(generator))
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

    def _repaint(self, *_: Any) -> None:
        """Nothing: the transformer knows what is kept."""


class KontextFamily(FluxFamily):
    """`FluxKontextPipeline`, and its sibling for inpainting: the picture's tokens follow those of
    the latents."""

    def _seen(self, sample: SampleSpec) -> tuple[Any, ...]:
        (picture,) = sample.inputs.images
        width, height = preferred(picture.size, 2 * self.pipeline.vae_scale_factor)

        def see() -> Any:
            processor = self.pipeline.image_processor
            resized = processor.resize(image(picture), height, width)
            return self._distribution(processor.preprocess(resized, height, width))

        return (self._pictures.get((picture.digest, width, height), see),)

    def begin(self, sample: SampleSpec, conditioning: Conditioning) -> FluxSession:
        generator = torch.Generator("cpu").manual_seed(sample.sampling.seed)
        pictures = [self._scaled(picture.mode()) for picture in conditioning.pictures]
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
        latents, _, image_ids, _ = self.pipeline.prepare_latents(
            None,
            1,
            self.transformer.config.in_channels // 4,
            sample.sampling.height,
            sample.sampling.width,
            self.dtype,
            self.device,
            generator,
        )
        return self._from_noise(sample, conditioning, latents, image_ids)
