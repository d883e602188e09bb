"""Agno's picture tools, of which one needs a URL and one takes base64: `URL MODEL`."""

import os
import sys
import urllib.request

os.environ["OPENAI_BASE_URL"] = f"{sys.argv[1]}/v1"
os.environ["OPENAI_API_KEY"] = "unused"

from agno.tools.dalle import DalleTools
from agno.tools.openai import OpenAITools
from agno.utils.log import logger

url, model = sys.argv[1:]
made = DalleTools(model=model, size="1792x1024").create_image("a cat")
with urllib.request.urlopen(made.images[0].url) as answer:
    assert answer.read(4) == b"\x89PNG", made
print("DalleTools.create_image")
made = OpenAITools(image_model=model, image_size="1024x1024").generate_image("a cat")
assert made.images[0].content[:4] == b"\x89PNG", made
print("OpenAITools.generate_image")
logger.setLevel("CRITICAL")  # else it prints what it answers, too
other = "dall-e-2" if model == "dall-e-3" else "dall-e-3"
made = DalleTools(model=other).create_image("a cat")
assert f"'{other}' does not exist" in made.content, made
print("errors")
