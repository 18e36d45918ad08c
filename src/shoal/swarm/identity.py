"""A node's identity: one ed25519 key for every transport and every signature."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.errors import IdentityError, UsageError
from shoal.transport.node_key import node_peer
from shoal.types import PeerId, peer_id

SEED_BYTES = 32
SIGNATURE_BYTES = 64


class Identity:
    """A node's private key and its id."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.peer = peer_id(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity that nothing keeps."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The identity in a file (64 hexadecimal digits, mode 0600), made if there is none.

        Raises UsageError for a file that holds anything else, and where none can be made.
        """
        try:
            if not path.exists():
                return cls._create(path)
        except (OSError, ValueError) as error:  # no folder, no permission; a name that cannot be
            raise UsageError(f"no identity can be kept in {path}: {error}") from error
        try:
            seed = bytes.fromhex(path.read_text("ascii").strip())
            return cls(Ed25519PrivateKey.from_private_bytes(seed))
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{path} is not an identity file ({SEED_BYTES * 2} hexadecimal digits): {error}"
            ) from error

    @classmethod
    def _create(cls, path: Path) -> Identity:
        identity = cls.generate()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and linked into place: two processes that start together agree on one key.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(identity.key.private_bytes_raw().hex() + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            return cls.load(path)
        except OSError:
            os.replace(draft, path)  # file systems without hard links
        finally:
            draft.unlink(missing_ok=True)
        return identity

    def sign(self, label: bytes, body: bytes) -> bytes:
        """64 bytes over the label and the body; labels keep signatures for one purpose from serving another."""
        return self.key.sign(label + b"\0" + body)


def verify(peer: PeerId, label: bytes, body: bytes, signature: bytes) -> bool:
    """Whether the node `peer` signed `body` under `label`."""
    try:
        key = bytes.fromhex(peer)
        node_peer(key)  # keys of small order verify what anybody makes up
        Ed25519PublicKey.from_public_bytes(key).verify(signature, label + b"\0" + body)
    except (InvalidSignature, IdentityError, ValueError):
        return False
    return True
