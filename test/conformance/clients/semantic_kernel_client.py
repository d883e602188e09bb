"""Semantic Kernel's text-to-image service: `semantic_kernel_client.py URL MODEL`."""

import asyncio
import base64
import sys

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import (
    OpenAITextToImage,
    OpenAITextToImageExecutionSettings,
)
from semantic_kernel.exceptions import ServiceResponseException

url, model = sys.argv[1:]


def service(name: str = model) -> OpenAITextToImage:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="unused")
    return OpenAITextToImage(ai_model_id=name, async_client=client)


def check(image: str) -> None:
    """It takes a URL where there is one, else base64."""
    assert image.startswith(url) or base64.b64decode(image)[:4] == b"\x89PNG", image[:80]


async def main() -> None:
    check(await service().generate_image("a cat", width=1024, height=1024))
    settings = OpenAITextToImageExecutionSettings(n=2, quality="high")
    made = await service().generate_images("a cat", settings)
    assert len(made) == 2
    for image in made:
        check(image)
    print("OpenAITextToImage.generate_image, generate_images")
    paths = ["input.png", "input_image.png"]
    for image in await service().edit_image("a dog", image_paths=paths, mask_path="mask.png"):
        check(image)
    print("OpenAITextToImage.edit_image")
    try:
        await service("none").generate_images("a cat")
        raise AssertionError("a model that is not there")
    except ServiceResponseException as failure:
        assert "'none' does not exist" in str(failure.__cause__), failure
    print("errors")


asyncio.run(main())
