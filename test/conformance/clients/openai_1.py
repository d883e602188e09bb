"""OpenAI's SDK for Python before its videos, and the command line it had: `URL MODEL`."""

import base64
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
from openai import NotFoundError, OpenAI

PICTURE = Path("input.png")
url, model = sys.argv[1:]
client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
print("openai", openai.__version__)


def is_png(text: str) -> bool:
    return base64.b64decode(text)[:4] == b"\x89PNG"


assert client.models.retrieve(client.models.list().data[0].id).id == model
print("models.list, retrieve")
made = client.images.generate(
    prompt="a cat", model=model, n=2, size="64x64", response_format="b64_json"
)
assert len(made.data) == 2 and all(is_png(one.b64_json) for one in made.data)
print("images.generate")
edited = client.images.edit(image=PICTURE, mask=Path("mask.png"), prompt="a dog", model=model)
assert is_png(edited.data[0].b64_json)
assert client.images.edit(image=[PICTURE, PICTURE], prompt="a dog").data
print("images.edit")
assert client.images.create_variation(image=PICTURE, model=model).data
print("images.create_variation")
try:
    client.images.generate(prompt="a cat", model="none")
    raise AssertionError("a model that is not there")
except NotFoundError as failure:
    assert failure.code == "model_not_found", failure
print("errors")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """`openai api ...`, of this environment."""
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "unused"}
    line = [sys.executable, "-m", "openai", "api", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def answered(*words: str) -> list[dict]:
    """The pictures in what the command prints."""
    done = command(*words, "-m", model, "-s", "64x64")
    return json.loads(done.stdout)["data"]


(linked,) = answered("images.generate", "-p", "a cat")
with urllib.request.urlopen(linked["url"]) as answer:
    assert answer.read(4) == b"\x89PNG", linked
two = answered("images.generate", "-p", "a cat", "-n", "2", "--response-format", "b64_json")
assert [is_png(one["b64_json"]) for one in two] == [True, True]
assert answered("images.edit", "-p", "a dog", "-I", "input.png", "-M", "mask.png")
assert answered("images.create_variation", "-I", "input.png")
failed = command("images.generate", "-p", "a cat", "-m", "none")
assert "'none' does not exist" in failed.stderr, failed
print("openai api images.generate, images.edit, images.create_variation, and their errors")
