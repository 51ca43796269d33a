"""The format of a lease."""

import re
from typing import Final

MAX_LEASE_TIME: Final = 86_400.0  # in seconds
# '<when granted>-<ttl, both in milliseconds>-<sequence number>-<incarnation of the worker>@<name of the worker>', with
# '-<name of a token>' before the '@' if the leases of the token are limited
LEASE: Final = re.compile(r"\d{13}-\d{1,8}-\d{1,16}-\d{1,16}(-[\w.-]{1,64})?@[!-~]{8,1024}\Z", re.ASCII)
