"""Haystack's generator of pictures: `URL MODEL`."""

import os
import sys

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["OPENAI_API_KEY"] = "unused"

from haystack.components.generators import OpenAIImageGenerator

url, model = sys.argv[1:]
generator = OpenAIImageGenerator(model=model, size="64x64", api_base_url=f"{url}/v1")
if hasattr(generator, "warm_up"):
    generator.warm_up()
(image,) = generator.run("a cat")["images"]
assert image.startswith(("iVBORw0KGgo", url)), image[:80]
print("OpenAIImageGenerator.run")
