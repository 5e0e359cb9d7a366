"""The JSON schema of recipes, for editors (docs/recipe.schema.json)."""

from __future__ import annotations

from typing import Any

from launcher.recipe.sections import Recipe


def recipe_schema() -> dict[str, Any]:
    """JSON schema, draft 2020-12.

    Keys that a section needs are not marked `required` there: the recipe that it extends may hold them.
    """
    schema = Recipe.model_json_schema(mode="validation")
    for section in schema["$defs"].values():
        section.pop("required", None)
    schema.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "swiftlaunch recipe",
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": ["name", "model"]},
    }
