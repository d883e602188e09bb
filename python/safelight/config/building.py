"""From flat values to the tree, checked."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from safelight import fields
from safelight.config.model import ModelConfig, VaeConfig
from safelight.config.serving import LoraConfig, ParallelConfig, WebhookConfig
from safelight.config.tree import SECTIONS, EngineConfig, ServedModel, engine_fields
from safelight.errors import ConfigError


def build(values: Mapping[str, Any], *, strict: bool = True) -> EngineConfig:
    """The tree from flat `values`. Raises `ConfigError` naming the wrong or unknown key."""
    known = engine_fields()
    values = fields.canonical(values, known.values())
    fields.refuse_unknown(values, known, what="setting", error=ConfigError)
    sections = {
        name: fields.convert(
            section,
            {f.name: values[f.name] for f in fields.declared(section) if f.name in values},
            strict=strict,
            error=ConfigError,
        )
        for name, section in SECTIONS.items()
    }
    config = EngineConfig(**cast(Any, sections))
    config = msgspec.structs.replace(config, served=tuple(_served(config, values)))
    for entry in config.entries:
        _check_entry(entry)
    _check_lora(config.lora)
    _check_webhooks(config.webhooks)
    return config


def _check_lora(lora: LoraConfig) -> None:
    given = {"lora_name": lora.lora_name, "lora_nickname": lora.lora_nickname}
    for name, value in given.items():
        if value is not None and lora.lora_path is None:
            raise ConfigError(
                f"{fields.flag(name)} {value} says more about --lora-path, which is not given: "
                "give the directory or repository of the adapter.",
                param=name,
            )


def _check_entry(entry: ServedModel) -> None:
    if entry.model.text_encoder_cpu_offload and entry.parallel.tp_size > 1:
        raise ConfigError(
            "--text-encoder-cpu-offload and --tp-size are two ways to the same end: an encoder is "
            "kept in host memory, or shared out over the GPUs. Give one of them.",
            param="tp_size",
        )
    fields.convert(VaeConfig, entry.model.vae_config, error=ConfigError)


def _check_webhooks(webhooks: WebhookConfig) -> None:
    for url in webhooks.webhook_url:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(
                f"--webhook-url {url}: write a whole URL, http:// or https://.",
                param="webhook_url",
            )
    if (webhooks.webhook_url or webhooks.webhook_secret) and not _is_secret(
        webhooks.webhook_secret or ""
    ):
        raise ConfigError(
            "--webhook-url needs a --webhook-secret to sign with: whsec_ and 24 to 64 random bytes "
            'in base64, as "whsec_$(openssl rand -base64 32)" makes them.',
            param="webhook_secret",
        )


def _is_secret(text: str) -> bool:
    """Of the form that Standard Webhooks prescribes."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return False
    return text.startswith("whsec_") and 24 <= len(key) <= 64


_OF_A_MODEL = (ModelConfig, ParallelConfig)
_NAMES = {"name": "served_model_name", "path": "model_path"}
"""How an entry of `models` may spell them."""


def _served(config: EngineConfig, common: Mapping[str, Any]) -> Iterator[ServedModel]:
    """The models of `--model` and `models:`, each with what holds for all. Raises `ConfigError`."""
    known = {f.name: f for section in _OF_A_MODEL for f in fields.declared(section)}
    shared = {name: value for name, value in common.items() if name in known}
    entries = [_named(text) for text in config.models.model] + list(config.models.models)
    seen = set()
    for entry in entries:
        load = entry.get("load", True)
        own = {str(k).replace("-", "_"): v for k, v in entry.items() if k != "load"}
        own = fields.canonical({_NAMES.get(k, k): v for k, v in own.items()}, known.values())
        fields.refuse_unknown(own, known, what="setting of a model", error=ConfigError)
        one = build({**shared, **own}, strict=False)
        if one.model_name in seen:
            raise ConfigError(f"Two models are called '{one.model_name}': give each a name.")
        if not isinstance(load, bool):
            raise ConfigError(f"'load' of the model {one.model_name} is true or false.")
        seen.add(one.model_name)
        yield ServedModel(name=one.model_name, model=one.model, parallel=one.parallel, load=load)


def _named(text: str) -> dict[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise ConfigError(f"--model {text}: write NAME=PATH, for example full=./flux.")
    return {"name": name, "path": path}
