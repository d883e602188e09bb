"""What programs do with LiteLLM: `litellm_client.py URL MODEL`.

Prints a line for everything that went well; an exception ends it.
"""

import base64
import importlib.metadata
import os
import sys
import time

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks GitHub

import litellm


def main(url: str, model: str) -> None:
    where = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "unused"}
    print("litellm", importlib.metadata.version("litellm"))
    made = litellm.image_generation(
        prompt="a cat", n=1, size="64x64", seed=5, extra_headers={"X-Team": "a"}, **where
    )
    assert base64.b64decode(made.data[0].b64_json)[:4] == b"\x89PNG"
    print("image_generation")
    with open("input.png", "rb") as picture:
        edited = litellm.image_edit(image=picture, prompt="a dog", **where)
    assert edited.data[0].b64_json or edited.data[0].url
    print("image_edit")
    with open("input.png", "rb") as picture:
        varied = litellm.image_variation(image=picture, **where)
    assert varied.data[0].b64_json or varied.data[0].url
    print("image_variation")
    videos(where)


def videos(where: dict) -> None:
    """Ids are LiteLLM's own: ours are inside."""
    access = {"api_base": where["api_base"], "api_key": where["api_key"]}
    access["custom_llm_provider"] = "openai"
    video = litellm.video_generation(prompt="a cat", size="64x64", seconds="1", **where)
    while video.status not in ("completed", "failed"):
        time.sleep(0.05)
        video = litellm.video_status(video_id=video.id, **access)
    assert video.status == "completed"
    print("video_generation, video_status")
    assert litellm.video_content(video_id=video.id, **access)[4:8] == b"ftyp"
    print("video_content")
    assert litellm.video_remix(video_id=video.id, prompt="a dog", **access).id
    print("video_remix")
    assert litellm.video_list(**access)
    print("video_list")


main(sys.argv[1], sys.argv[2])
