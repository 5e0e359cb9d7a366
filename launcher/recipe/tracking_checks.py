"""Rules of [tracking]."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from launcher.recipe.faults import Problem
from launcher.recipe.fields import shown
from launcher.recipe.sections import WANDB_KEY, Env, Tracking


def tracking_rules(tracking: Tracking, env: object, *, trains: bool) -> Iterator[Problem]:
    """What trackers cannot do, or not with these keys."""
    for key in ("wandb", "mlflow"):
        if getattr(tracking, key) and not trains:
            yield Problem(("tracking", key), "there is no [train] whose metrics it could send", "remove it")
    if tracking.project is not None and not (tracking.wandb or tracking.mlflow):
        yield Problem(("tracking", "project"), "has no meaning without wandb = true or mlflow = true", "remove it")
    if tracking.wandb_mode is not None and not tracking.wandb:
        yield Problem(("tracking", "wandb_mode"), "has no meaning without wandb = true", "remove it")
    keyed = isinstance(env, Env) and WANDB_KEY in env.secrets
    if tracking.wandb and tracking.wandb_mode == "online" and not keyed:
        hint = f'export {WANDB_KEY} in your shell and write secrets = ["{WANDB_KEY}"] under [env]'
        yield Problem(("tracking", "wandb_mode"), "W&B's server asks for a key", hint)
    if tracking.mlflow_uri is None:
        return
    if not tracking.mlflow:
        yield Problem(("tracking", "mlflow_uri"), "has no meaning without mlflow = true", "remove it")
    try:
        parts = urlsplit(tracking.mlflow_uri)
    except ValueError:
        yield Problem(("tracking", "mlflow_uri"), f"{shown(tracking.mlflow_uri)} is not an address")
        return
    if parts.scheme not in ("http", "https") or not parts.hostname:
        what = f"{shown(tracking.mlflow_uri)} is not the address of a server"
        yield Problem(("tracking", "mlflow_uri"), what, "write http:// or https://; without it a folder is used")
    elif parts.password is not None or parts.username is not None:
        hint = "export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and name them under env.secrets"
        yield Problem(("tracking", "mlflow_uri"), "holds a name or password, and the plan keeps it", hint)
