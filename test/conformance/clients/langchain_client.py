"""LangChain's wrapper of OpenAI's pictures, which needs a URL in the answer: `URL MODEL`."""

import sys

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

url, model = sys.argv[1:]
made = DallEAPIWrapper(
    base_url=f"{url}/v1", api_key="unused", model=model, size="64x64", quality="standard"
).run("a cat")
assert made.startswith(url), made
print("DallEAPIWrapper.run")
