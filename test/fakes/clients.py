"""Clients that speak OpenAI's protocol, unchanged, each in an environment of its own.

The server is real HTTP, manager and store over an engine that makes small real files at once.
Scripts and packages are in `test/conformance/clients/`; a script prints a line for everything that
went well, and an exception ends it.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fakes import clips, isolated, manual_servers, node
from fakes.engine_peer import CARD, file_of
from fakes.node import CLIENTS
from fakes.stack import running
from safelight.models.card import Range
from safelight.request import Inputs, SampleSpec

SIZES = Range(32, 1792, 16)
ANYTHING = msgspec.structs.replace(
    CARD,
    tasks=("text-to-video", "text-to-image", "image-to-video", "image-to-image", "inpainting"),
    parameters=(*CARD.parameters, "strength"),
    max_images=16,
    width=SIZES,
    height=SIZES,
    num_frames=Range(1, 201, 4),
    max_tokens=1_000_000,
)


@dataclass(frozen=True)
class Client:
    """One client. Its requirements are `clients/<packages>`."""

    name: str
    packages: str
    script: str
    model: str = ANYTHING.name
    """What the server calls its model: some clients only know OpenAI's names."""
    note: str = ""
    """What its users must know, in Markdown."""

    @property
    def version(self) -> str:
        """What is installed, as its requirements say."""
        path = CLIENTS / self.packages
        if self.script.endswith(".py"):
            return ", ".join((path / "requirements.txt").read_text().split())
        needed = msgspec.json.decode((path / "package.json").read_bytes())["dependencies"]
        return ", ".join(f"{name}@{version}" for name, version in needed.items())

    def command(self, directory: Path, url: str) -> list[str]:
        script = CLIENTS / self.script
        if self.script.endswith(".py"):
            found = [isolated.interpreter(self.packages), script]
        else:
            found = [Path("node"), node.beside_packages(script, self.packages, directory)]
        return [*map(str, found), url, self.model]


IN_CI = (
    Client("openai-python 2.x", "openai-2", "openai_python.py"),
    Client(
        "LiteLLM",
        "litellm",
        "litellm_client.py",
        note='`model="openai/<name>"`. Its video ids are its own, with the server\'s inside.',
    ),
    Client("openai-node 7.x", "node", "openai_node.mjs"),
)
OTHERS = (
    Client(
        "openai-python 1.x",
        "openai-1",
        "openai_1.py",
        note="It has the command `openai api`, and no videos.",
    ),
    Client("openai-node 6.x", "node-6", "openai_node.mjs"),
    Client(
        "Vercel AI SDK",
        "ai-sdk",
        "ai_sdk.mjs",
        note="`n` pictures are `n` requests. It does not send `seed`; the next provider can.",
    ),
    Client(
        "Vercel AI SDK, compatible provider",
        "ai-sdk",
        "ai_sdk_compatible.mjs",
        note="`providerOptions.<name>` become fields: `seed`, `num_inference_steps`.",
    ),
    Client(
        "LangChain (Python)",
        "langchain",
        "langchain_client.py",
        note="Takes URLs alone; they have the host that the request had.",
    ),
    Client(
        "LangChain (JavaScript)",
        "langchain-js",
        "langchain_js.mjs",
        note="Gives a URL unless `dallEResponseFormat` says `b64_json`.",
    ),
    Client(
        "Haystack",
        "haystack",
        "haystack_client.py",
        note="`api_base_url`. Takes base64 alone, which it is sent.",
    ),
    Client(
        "Semantic Kernel",
        "semantic-kernel",
        "semantic_kernel_client.py",
        note="Give it an `AsyncOpenAI` with the base URL. Prefers URLs to base64.",
    ),
    Client(
        "Agno",
        "agno",
        "agno_client.py",
        model="dall-e-3",
        note="`OPENAI_BASE_URL`. `DalleTools` knows two model names: serve with "
        "`--served-model-name dall-e-3`.",
    ),
    Client(
        "TanStack AI",
        "tanstack",
        "tanstack.mjs",
        model="gpt-image-1",
        note="A picture's `size` is accepted for OpenAI's model names alone, a video's must be one "
        "of Sora's; without it, any model.",
    ),
    Client(
        "any-llm",
        "any-llm",
        "any_llm_client.py",
        note='Fields that it does not know go into `extra_body={"seed": 5}`.',
    ),
)


def run(client: Client, directory: Path) -> list[str]:
    """What went well. Raises `AssertionError` with all that it printed if it did not end well."""
    manual_servers.reader_files(directory)
    card = msgspec.structs.replace(ANYTHING, name=client.model)
    with running(directory / "data", card=card) as stack:
        stack.peer.makes = made
        done = subprocess.run(
            client.command(directory, stack.base_url),
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line]


def made(spec: SampleSpec) -> bytes:
    """A picture of the size that was asked for, or a video that plays."""
    if spec.delivery.format != "mp4":
        return file_of(spec)
    return clips.made(msgspec.structs.replace(spec, inputs=Inputs()))
