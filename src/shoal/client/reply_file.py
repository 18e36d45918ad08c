"""The file in which a growing reply is kept."""

from __future__ import annotations

from pathlib import Path

from shoal.client.completion import GrowingReply
from shoal.client.remote_model import RemoteModel
from shoal.client.saved_reply import SavedReply, place_for_reply, read_saved, write_saved
from shoal.errors import SessionFenced


class ReplyFile:
    """Keeps `reply` in `path` as it grows; without a path nothing is kept."""

    def __init__(self, path: Path | None, model: RemoteModel, reply: GrowingReply) -> None:
        self._path = path
        self._model = model
        self._reply = reply
        self._written: tuple[int, int] | None = None

    def keep(self) -> None:
        """Bring the file up to date; raises SessionFenced when a later process has written it meanwhile."""
        reply, model, path = self._reply, self._model, self._path
        if path is None or reply.session is None:
            return
        if self._written is None:
            place_for_reply(path)  # what has come to lie there since it was chosen is not replaced either
        session = reply.session.save()
        overwritten = self._written not in (None, _state(path))
        if overwritten and read_saved(path).session.resumed > session.resumed:
            raise SessionFenced(f"another process goes on with the reply in {path}")
        write_saved(
            path,
            SavedReply(
                model.source,
                model.client.tickets,
                reply.prompt_ids,
                reply.token_ids,
                reply.text,
                reply.seed,
                reply.params,
                reply.finish_reason,
                session,
            ),
        )
        self._written = _state(path)


def _state(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
