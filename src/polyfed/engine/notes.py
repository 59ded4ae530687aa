"""What a method notes of a round, as a line of the records."""

from __future__ import annotations

from typing import Any

from polyfed.method.protocol import Note


def note_record(round_number: int, said: Note) -> dict[str, Any]:
    """Return the line; ``links`` are only in it where the method tells numbers of pairs of clients."""
    line: dict[str, Any] = {
        "kind": "note",
        "round": round_number,
        "numbers": dict(said.numbers),
        "clients": {str(client): dict(held) for client, held in sorted(said.clients.items())},
    }
    if said.links:
        line["links"] = {
            name: {str(one): {str(other): value for other, value in held.items()} for one, held in pairs.items()}
            for name, pairs in said.links.items()
        }
    return line
