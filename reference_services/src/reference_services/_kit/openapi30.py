"""The OpenAPI 3.0.3 copy of a 3.1 document, for tools that know no other.

It keeps what 3.0.3 can say; JSON Schema 2020-12 has more words. Limits: only the words that pydantic writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_30(doc: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.0.3 copy of a 3.1 document that `document` made."""
    copy: dict[str, Any] = _schema_30(doc)
    copy["openapi"] = "3.0.3"
    copy["info"]["license"].pop("identifier")
    return copy


def _schema_30(node: Any) -> Any:
    if isinstance(node, list):
        return [_schema_30(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    made = {word: _schema_30(value) for word, value in node.items()}
    if "const" in made and not isinstance(made["const"], dict):
        made["enum"] = [made.pop("const")]
    for word in ("exclusiveMinimum", "exclusiveMaximum"):
        limit = made.get(word)
        if isinstance(limit, (int, float)) and not isinstance(limit, bool):
            made[word.replace("exclusiveM", "m")] = limit
            made[word] = True
    if isinstance(made.get("examples"), list):
        made["example"] = made.pop("examples")[0]
    if isinstance(made.get("prefixItems"), list):
        made["items"] = {"anyOf": made.pop("prefixItems")}
    return _nullable(made)


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Say `nullable` where 3.1 has an alternative of type null; a `$ref` may not have siblings, so wrap it."""
    choices = schema.get("anyOf")
    if not isinstance(choices, list) or {"type": "null"} not in choices:
        return schema
    rest = [choice for choice in choices if choice != {"type": "null"}]
    others = {word: value for word, value in schema.items() if word != "anyOf"}
    if len(rest) > 1:
        return {**others, "nullable": True, "anyOf": rest}
    if "$ref" in rest[0]:
        return {**others, "nullable": True, "allOf": rest}
    return {**others, "nullable": True, **rest[0]}
