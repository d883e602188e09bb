"""LangChain's wrapper of OpenAI's pictures, which needs a URL in the answer: `URL MODEL`."""

import sys
import urllib.request

from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from openai import NotFoundError

url, model = sys.argv[1:]
where = {"base_url": f"{url}/v1", "api_key": "unused", "size": "1024x1024"}
made = DallEAPIWrapper(model=model, **where).run("a cat")
with urllib.request.urlopen(made) as answer:
    assert answer.read(4) == b"\x89PNG", made
several = DallEAPIWrapper(model=model, n=2, quality="standard", **where).run("a cat")
assert several.count(f"{url}/v1/images/") == 2, several
print("DallEAPIWrapper.run")
try:
    DallEAPIWrapper(model="none", **where).run("a cat")
    raise AssertionError("a model that is not there")
except NotFoundError as failure:
    assert "'none' does not exist" in str(failure), failure
print("errors")
