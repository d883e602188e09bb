"""`safelight serve`: the engine behind HTTP, until it is told to stop."""

from __future__ import annotations

import json

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from safelight.cli.display import Startup, stderr_console
from safelight.config import EngineConfig
from safelight.models.card import ModelCard

_READY = "ready: "


class Announcer:
    """Shows the start-up, and the panel once the entrypoint is ready. Call it from any thread."""

    def __init__(
        self, console: Console, startup: Startup, config: EngineConfig, cards: list[ModelCard]
    ) -> None:
        self._console = console
        self._startup = startup
        self._config = config
        self._cards = cards

    def __call__(self, process: str, stage: str) -> None:
        self._startup(process, stage)
        if process == "entrypoint" and stage.startswith(_READY):
            self._startup.stop()
            address = stage.removeprefix(_READY).strip()
            names = ", ".join(card.name for card in self._cards)
            self._console.print(panel(address, names))
            # Below the panel and not wrapped: it is there to be copied.
            with_key = self._config.server.api_key is not None
            self._console.print(example(address, self._cards[0], with_key=with_key), soft_wrap=True)


def serve(config: EngineConfig) -> int:
    """Serve `config`'s model over HTTP; blocks until SIGINT or SIGTERM, gives the exit status."""
    from safelight.engine import Engine
    from safelight.models.registry import load_cards

    console = stderr_console()
    with Startup(console) as startup:
        _, cards = load_cards(config)
        announcer = Announcer(console, startup, config, list(cards.values()))
        return Engine(config, http=True, on_starting=announcer).serve()


def panel(address: str, model: str) -> Panel:
    """Where it listens and what it serves."""
    text = Text(f"address  {address}\nmodel    {model}\nstop     Ctrl-C")
    return Panel(text, title="Safelight", expand=False, title_align="left")


def example(address: str, card: ModelCard, *, with_key: bool) -> str:
    """A curl command that asks for what the model makes, to be pasted into a shell."""
    body = json.dumps({"model": card.name, "prompt": "a red circle moving left"})
    route = "videos" if card.makes("video") else "images/generations"
    key = ' -H "Authorization: Bearer $SAFELIGHT_API_KEY"' if with_key else ""
    return f"curl {address}/v1/{route}{key} \\\n  -H 'Content-Type: application/json' -d '{body}'"
