"""A batch made by an engine of its own, in this command's processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from safelight.cli import naming
from safelight.cli.batch.backend import Lost, Made, picture
from safelight.cli.batch.lines import Item
from safelight.cli.batch.results import File
from safelight.cli.generate import adapters_of, compression_of
from safelight.config import EngineConfig
from safelight.engine import Engine, Job, read_media
from safelight.errors import ConfigError, RequestError, SafelightError, Unavailable
from safelight.launch.supervisor import OnStarting
from safelight.manager.building import build_request, choose, output_of
from safelight.models.registry import load_cards
from safelight.request import GenerationRequest


class LocalEngine:
    """Lines as jobs of an `Engine`, which is started when they were checked."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises `ConfigError` if there is no such model."""
        self._config, self._cards = load_cards(config)
        self._engine: Engine | None = None

    def check(self, items: Sequence[Item]) -> list[str]:
        """Everything but the weights: fields, limits, pictures."""
        wrong = []
        for item in items:
            try:
                self._request(item)
            except (RequestError, ConfigError) as failure:
                wrong.append(f"line {item.number}: {failure.message}")
        return wrong

    @contextlib.contextmanager
    def started(self, on_starting: OnStarting) -> Iterator[None]:
        """Its processes run until the block ends. Raises `StartupFailed`."""
        with Engine(self._config, on_starting=on_starting) as self._engine:
            yield

    async def open(self, items: Sequence[Item]) -> None:
        """Nothing is left to do."""

    async def close(self) -> None:
        """Its processes are ended by whoever started them."""

    async def make(self, item: Item, directory: Path) -> Made:
        try:
            return await self._made(item, directory)
        except Unavailable as failure:  # an engine that has stopped does not come back
            raise Lost(failure.message) from failure

    async def _made(self, item: Item, directory: Path) -> Made:
        job = await asyncio.to_thread(self._submit, item, directory)
        try:
            view = await asyncio.to_thread(job.wait)
        except asyncio.CancelledError:
            with contextlib.suppress(SafelightError):  # the engine has stopped, or forgotten it
                await asyncio.shield(asyncio.to_thread(job.cancel))
            raise
        files = (
            File(
                path=output.path,
                seed=output.seed,
                width=output.width,
                height=output.height,
                num_frames=output.num_frames,
            )
            for output in view.outputs
        )
        return Made(tuple(files), view.request.model)

    def _submit(self, item: Item, directory: Path) -> Job:
        assert self._engine is not None
        request = self._request(item)
        kind = output_of(request.task)
        names = item.names(naming.extension_of(request.format))
        return self._engine.submit(
            request.prompt,
            model=request.model,
            round_size=item.options.round_size,
            images=[picture(one) for one in item.options.image_path],
            mask=None if item.options.mask_path is None else picture(item.options.mask_path),
            sampling=item.sampling,
            output=kind,
            n=request.n,
            format=request.format,
            compression=compression_of(item.options, kind),
            priority=request.priority,
            lora=item.options.lora or None,
            destinations=[directory / name for name in names],
        )

    def _request(self, item: Item) -> GenerationRequest:
        """Raises `RequestError` or `ConfigError` if it cannot be made."""
        own = item.options
        mask = None if own.mask_path is None else picture(own.mask_path)
        pictures = [picture(one) for one in own.image_path]
        media = read_media(pictures, mask, self._config.server.max_input_pixels)
        return build_request(
            choose(self._cards, item.line.model, item.kind, media),
            item.line.prompt,
            item.sampling,
            output=item.kind,
            media=media,
            round_size=own.round_size,
            format=item.line.output_format,
            n=own.n,
            max_outputs=self._config.server.max_outputs,
            compression=own.output_compression,
            priority=own.priority,
            adapters=adapters_of(self._config, own),
        )
