"""The server that sends is killed, and sends all the same."""

from __future__ import annotations

from pathlib import Path

from standardwebhooks import Webhook

from fakes import receiver
from fakes.receiver import SECRET
from fakes.server import serving


def test_a_server_killed_while_it_sends_sends_again(tmp_path: Path) -> None:
    with receiver.receiving() as hook:
        flags = ("--webhook-url", hook.url, "--webhook-secret", SECRET)
        with serving(tmp_path / "data", *flags) as server:
            hook.open.clear()
            video = server.create(num_inference_steps=2)
            first = hook.next()
            server.children()["safelight.entrypoint"].kill()
            hook.open.set()
            second = hook.next()
            assert (second.id, second.body) == (first.id, first.body)
            event = Webhook(SECRET).verify(second.body, second.headers)
            assert (event["type"], event["data"]["id"]) == ("video.completed", video)
            server.wait_ready()
            assert server.wait(video)["status"] == "completed"
            assert hook.silent
