"""What commands print as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from shoal.cli.terminal import HIDDEN


def json_line(value: Any) -> str:
    """JSON in which nothing stands as it is that a terminal would obey; it means the same to a program."""
    text = msgspec.json.encode(whole(value)).decode()
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def whole(value: Any) -> Any:
    """Structs as they are encoded, but with every field."""
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        fields = {name: whole(field) for name, field in msgspec.structs.asdict(value).items()}
        if config.array_like:
            return list(fields.values())
        return fields if config.tag is None else {config.tag_field: config.tag, **fields}
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list | tuple | frozenset) else value
