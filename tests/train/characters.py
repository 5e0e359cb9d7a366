"""A tokenizer for tests without transformers: a character is a token, and chats are written by a real template."""

from __future__ import annotations

from typing import Any

import jinja2

TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}"
    "{% for call in turn.tool_calls %}({{ call.function.name }}){% endfor %}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
END = 3


class Characters:
    """What `launcher.work.tokens` asks of a tokenizer."""

    is_fast = True
    eos_token_id = END

    def __init__(self, chat_template: str | None = TEMPLATE) -> None:
        self.chat_template = chat_template

    def __call__(self, texts: list[str], return_offsets_mapping: bool = False, **_: Any) -> dict[str, Any]:
        return {
            "input_ids": [[ord(letter) for letter in text] for text in texts],
            "offset_mapping": [[(at, at + 1) for at in range(len(text))] for text in texts],
        }

    def apply_chat_template(self, turns: Any, *, tools: Any, tokenize: bool, add_generation_prompt: bool) -> str:
        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        template = jinja2.Environment(autoescape=False).from_string(str(self.chat_template))
        return template.render(
            messages=turns, tools=tools, add_generation_prompt=add_generation_prompt, raise_exception=refuse
        )


def learnt(tokens: list[int], trained: list[bool]) -> str:
    """The characters that count in the loss."""
    return "".join(chr(token) for token, wanted in zip(tokens, trained, strict=True) if wanted)
