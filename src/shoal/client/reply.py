"""A reply in a session of its own, which may be kept in a file and taken up again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from shoal.client.generation import Conversation, Generation
from shoal.client.options import SessionOptions
from shoal.client.remote_model import RemoteModel
from shoal.client.saved_reply import SavedReply, read_saved, take_up, write_saved
from shoal.client.session.session import Session
from shoal.errors import FingerprintMismatch, SessionFenced
from shoal.model.nn.sampling import SamplingParams


class Reply:
    """`path`: where the reply is kept while it grows; left early, its session stays with the servers then."""

    def __init__(
        self, model: RemoteModel, generation: Generation, params: SamplingParams, path: Path | None = None
    ) -> None:
        self.generation = generation
        self.session: Session | None = None
        self._model = model
        self._params = params
        self._path = path
        self._written: tuple[int, int] | None = None

    async def stream(self, options: SessionOptions, wait_s: float) -> AsyncIterator[str]:
        """Generate; raises what a session and a generation raise."""
        session = await self._model.client.open_session(self._model.spec, options, wait_s)
        async for piece in self._go_on(session, []):
            yield piece

    async def resume(self, saved: SavedReply, wait_s: float) -> AsyncIterator[str]:
        """Go on with a reply from its file: its text so far comes first.

        Without a `path` nothing keeps another process from taking the same reply up. Raises FingerprintMismatch when the
        reply is another model's, SessionFenced when another process has it, or takes it up at the same moment.
        """
        if saved.session.model.fingerprint != self._model.spec.fingerprint:
            raise FingerprintMismatch(f"the reply is of {saved.session.model.name}, this is {self._model.spec.name}")
        if saved.finish_reason:
            self.generation.text = saved.text
            yield saved.text
            return
        # The file first: if this process ends too, the next one must not come as it did.
        now = self._model.client.clock.wall()
        saved = saved.taken_up() if self._path is None else take_up(self._path, saved, now)
        rows = await self._model.embed(saved.fed_ids)
        session = await self._model.client.resume(saved.session, rows, wait_s)
        async for piece in self._go_on(session, saved.fed_ids):
            yield piece

    async def _go_on(self, session: Session, held: list[int]) -> AsyncIterator[str]:
        self.session = session
        conversation = Conversation(self._model, session, held, self._keep)
        try:
            async for piece in conversation.generate(self.generation.prompt_ids, self._params, self.generation):
                yield piece
        finally:
            await session.close(end=self._path is None or bool(self.generation.finish_reason))

    def _keep(self) -> None:
        """Bring the file up to date; raises SessionFenced when a later process has written it meanwhile."""
        if self._path is None or self.session is None:
            return
        overwritten = self._written not in (None, _state(self._path))
        if overwritten and read_saved(self._path).session.resumed > self.session.supervisor.terms.resumed:
            raise SessionFenced(f"another process goes on with the reply in {self._path}")
        reply, remote = self.generation, self._model
        write_saved(
            self._path,
            SavedReply(
                remote.source,
                remote.client.tickets,
                reply.prompt_ids,
                reply.token_ids,
                reply.text,
                reply.seed,
                self._params,
                reply.finish_reason,
                self.session.save(),
            ),
        )
        self._written = _state(self._path)


def _state(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that was put in its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns
