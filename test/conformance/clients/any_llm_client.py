"""any-llm's pictures, made and edited: `any_llm_client.py URL MODEL`."""

import base64
import sys
import warnings
from pathlib import Path

from any_llm import image_edit, image_generation
from any_llm.exceptions import AnyLLMError
from openai import NotFoundError

warnings.simplefilter("ignore", DeprecationWarning)
url, model = sys.argv[1:]
where = {"provider": "openai", "api_base": f"{url}/v1", "api_key": "unused"}


def is_png(text: str) -> bool:
    return base64.b64decode(text)[:4] == b"\x89PNG"


made = image_generation(model=model, prompt="a cat", n=2, size="64x64", **where)
assert len(made.data) == 2 and all(is_png(one.b64_json) for one in made.data)
linked = image_generation(model=model, prompt="a cat", response_format="url", **where)
assert linked.data[0].url.startswith(url), linked
more = image_generation(model=model, prompt="a cat", extra_body={"seed": 5}, **where)
assert more.model_extra["seed"] == 5, more.model_extra
print("image_generation")
data = Path("input.png").read_bytes()
for image in (data, [data, data], "input.png"):
    edited = image_edit(model=model, image=image, prompt="a dog", size="64x64", **where)
    assert is_png(edited.data[0].b64_json)
print("image_edit")
try:
    image_generation(model="none", prompt="a cat", **where)
    raise AssertionError("a model that is not there")
except (AnyLLMError, NotFoundError) as failure:
    assert "'none' does not exist" in str(failure), failure
print("errors")
