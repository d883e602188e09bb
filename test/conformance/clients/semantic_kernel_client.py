"""Semantic Kernel's text-to-image service: `URL MODEL`."""

import asyncio
import sys

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import OpenAITextToImage

url, model = sys.argv[1:]


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused")
    service = OpenAITextToImage(ai_model_id=model, async_client=client)
    made = await service.generate_image("a cat", width=1024, height=1024)
    assert isinstance(made, bytes) or made.startswith(("http", "iVBORw0KGgo")), made[:80]


asyncio.run(main())
print("OpenAITextToImage.generate_image")
