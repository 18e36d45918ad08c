"""The messages of docs/wire.md, one module for each place where they may come."""

# Each module's public names are the package's: a message is declared in one place and listed nowhere else.
from shoal.protocol.messages.directory_messages import *  # noqa: F403
from shoal.protocol.messages.field_types import *  # noqa: F403
from shoal.protocol.messages.first_messages import *  # noqa: F403
from shoal.protocol.messages.link_messages import *  # noqa: F403
from shoal.protocol.messages.membership_messages import *  # noqa: F403
from shoal.protocol.messages.message import *  # noqa: F403
from shoal.protocol.messages.session_messages import *  # noqa: F403
