#!/bin/sh
# A Sentinel calls this when the master has changed. Stores the name of the new master for the next start.
#   moved.sh <master> <leader|observer> start <old address> <old port> <new address> <new port>
set -eu
for name in $REDIS_NODES; do
  if found=$(getent hosts "$name") && [ "${found%% *}" = "$6" ]; then
    echo "$name" >/data/master.new
    mv /data/master.new /data/master
  fi
done
