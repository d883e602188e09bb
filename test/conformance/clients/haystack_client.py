"""Haystack's generator of pictures, alone and in a pipeline: `haystack_client.py URL MODEL`."""

import asyncio
import base64
import os
import sys

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["OPENAI_API_KEY"] = "unused"

from haystack import Pipeline
from haystack.components.builders import PromptBuilder
from haystack.components.generators import OpenAIImageGenerator
from openai import NotFoundError

url, model = sys.argv[1:]


def generator(name: str = model) -> OpenAIImageGenerator:
    return OpenAIImageGenerator(model=name, api_base_url=f"{url}/v1")


def check(made: dict) -> None:
    """One PNG."""
    (image,) = made["images"]
    assert base64.b64decode(image)[:4] == b"\x89PNG", image[:80]


check(generator().run("a cat", size="1024x1536", quality="high"))
check(asyncio.run(generator().run_async("a cat")))
print("OpenAIImageGenerator.run, run_async")
pipeline = Pipeline()
pipeline.add_component("words", PromptBuilder("a {{animal}}", required_variables="*"))
pipeline.add_component("pictures", generator())
pipeline.connect("words.prompt", "pictures.prompt")
check(pipeline.run({"words": {"animal": "cat"}})["pictures"])
print("Pipeline.run")
try:
    generator("none").run("a cat")
    raise AssertionError("a model that is not there")
except NotFoundError as failure:
    assert "'none' does not exist" in str(failure), failure
print("errors")
