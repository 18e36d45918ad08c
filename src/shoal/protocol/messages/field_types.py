"""The limits of the wire, and the types of fields that follow from them. Every number on the wire has bounds."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.types import MAX_BLOCKS as MAX_BLOCKS
from shoal.types import MAX_HIDDEN_SIZE as MAX_HIDDEN_SIZE

MAX_ROWS = 4096
MAX_POSITION = 1 << 24
MAX_COUNTER = 1 << 48
MAX_HOPS = 128
MAX_TEXT_CHARS = 512
MAX_CODE_CHARS = 32
MAX_CONFIG_BYTES = 1 << 20
MAX_DIGEST_BYTES = 163_840
"""The node ids and sequence numbers of as many records as a node keeps."""
MAX_BATCH_BYTES = 1 << 20
"""Records, and the node ids that are wanted, in one answer of an exchange."""
MAX_SECONDS = 86_400
MAX_TIME_S = 1e11
"""The latest moment, in seconds since 1970, and the longest time that a measurement may show."""
MAX_RATE = 1e15
SECRET_BYTES = 16
MAX_RECORD_BYTES = 2048
MAX_CERTIFICATE_BYTES = 1024
MAX_INVITE_BYTES = 2048
MAX_ACCEPTANCE_BYTES = 1024
MAX_REVOCATIONS_BYTES = 400_000
MAX_WANT = 4096
"""Node ids that one exchange of records may ask for."""
MAX_GREEDIEST = 3
"""Accounts of a server that its status tells of."""
MAX_DIGEST_CHARS = 32
"""The digest of one block's weights, in hexadecimal digits."""

Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Code = Annotated[str, Meta(max_length=MAX_CODE_CHARS)]
Peer = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Secret = Annotated[bytes, Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
Position = Annotated[int, Meta(ge=0, le=MAX_POSITION)]
Counter = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
Count = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
"""A time that this node may wait."""
Elapsed = Annotated[float, Meta(ge=0, le=MAX_TIME_S)]
"""A time that was measured."""
Moment = Annotated[float, Meta(ge=-MAX_TIME_S, le=MAX_TIME_S)]
"""Seconds since 1970 by some node's clock."""
Rate = Annotated[float, Meta(ge=0, le=MAX_RATE)]
"""Rows per second; 0 when not yet measured."""
RecordBytes = Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)]
AcceptanceBytes = Annotated[bytes, Meta(max_length=MAX_ACCEPTANCE_BYTES)]
CertificateBytes = Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]
InviteBytes = Annotated[bytes, Meta(max_length=MAX_INVITE_BYTES)]
WeightDigest = Annotated[str, Meta(max_length=MAX_DIGEST_CHARS)]
RowCodec = Literal["fp32", "fp16", "bf16"]
