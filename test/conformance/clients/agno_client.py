"""Agno's picture tools, of which one needs a URL and one takes base64: `URL MODEL`."""

import os
import sys

os.environ["OPENAI_BASE_URL"] = f"{sys.argv[1]}/v1"
os.environ["OPENAI_API_KEY"] = "unused"

from agno.tools.dalle import DalleTools
from agno.tools.openai import OpenAITools

url, model = sys.argv[1:]
made = DalleTools(model=model, size="1024x1024").create_image("a cat")
assert made.images and made.images[0].url.startswith(url), made
print("DalleTools.create_image")
made = OpenAITools(image_model=model, image_size="1024x1024").generate_image("a cat")
assert made.images and made.images[0].content[1:4] == b"PNG", made
print("OpenAITools.generate_image")
