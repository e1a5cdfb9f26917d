"""The help of a command that trains: after its options, the fields of the method it is given."""

import inspect
from typing import Any

from typer.core import TyperCommand

from cmrfast.models import MODELS


class MethodCommand(TyperCommand):
    """A command whose options are also the fields of a method's Config and Recipe."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note the method before ``--help`` ends the parsing."""
        ctx.meta[__name__] = next((word for word in args if word in MODELS), None)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the fields of the method, then the example."""
        method = ctx.meta[__name__]
        if method is not None:
            _write_fields(method, formatter)
        super().format_epilog(ctx, formatter)


def _write_fields(method: str, formatter: Any) -> None:
    from cmrfast import methods
    from cmrfast.models._sources import FieldText, field_texts

    def entry(text: FieldText) -> tuple[str, str]:
        parts = [f"{text.kind}, default {text.default}"]
        parts += [text.meaning.rstrip(".")] if text.meaning else []
        source = f" [{text.source}]" if text.source else ""
        return f"--{text.name.replace('_', '-')}", f"{': '.join(parts)}{source}"

    record = methods.get(method)
    for values in (record.config(), record.recipe()):
        for owner, texts in field_texts(values).items():
            module = owner.__module__.rpartition(".")[2]
            of = "every method" if module == "recipe" else module.removesuffix("_config")
            with formatter.section(
                f"{owner.__name__} of {of}; in brackets, the source of a default"
            ):
                formatter.write_text(_legend(owner))
                formatter.write_paragraph()
                formatter.write_dl([entry(text) for text in texts])


def _legend(owner: type[Any]) -> str:
    """What the letters of its sources stand for: its docstring, up to the arguments."""
    text, _, _ = (inspect.getdoc(owner) or "").partition("Args:")
    return " ".join(text.split())
