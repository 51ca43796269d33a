"""What a lease looks like."""

import re
from typing import Final

MAX_LEASE_TIME: Final = 86_400.0  # in seconds
# '<when granted>-<ttl, both in milliseconds>-<sequence number>-<incarnation of the worker>@<name of the worker>'
LEASE: Final = re.compile(r"\d{13}-\d{1,8}-\d{1,16}-\d{1,16}@[!-~]{8,1024}\Z", re.ASCII)
