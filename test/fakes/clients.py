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

from fakes import isolated, manual_servers, node
from fakes.engine_peer import CARD
from fakes.node import CLIENTS
from fakes.stack import running
from safelight.models.card import Range

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
    Client("LiteLLM", "litellm", "litellm_client.py"),
    Client("openai-node 7.x", "node", "openai_node.mjs"),
)
OTHERS = (
    Client("openai-node 6.x", "node-6", "openai_node.mjs"),
    Client("Vercel AI SDK", "ai-sdk", "ai_sdk.mjs"),
    Client("LangChain (Python)", "langchain", "langchain_client.py"),
    Client("LangChain (JavaScript)", "langchain-js", "langchain_js.mjs"),
    Client("Haystack", "haystack", "haystack_client.py"),
    Client("Semantic Kernel", "semantic-kernel", "semantic_kernel_client.py"),
    Client("Agno", "agno", "agno_client.py", model="dall-e-3"),
    Client("TanStack AI", "tanstack", "tanstack.mjs", model="sora-2"),
)


def run(client: Client, directory: Path) -> list[str]:
    """What went well. Raises `AssertionError` with all that it printed if it did not end well."""
    manual_servers.reader_files(directory)
    card = msgspec.structs.replace(ANYTHING, name=client.model)
    with running(directory / "data", card=card) as stack:
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
