#!/bin/sh
# Makes a Cluster of the six containers behind the name `redis`. If they are one already, sees to it that they find each
# other, and each replica its master: their addresses may be others than at the last start.
set -eu
REDISCLI_AUTH=$(cat /run/controller/operator-password)
export REDISCLI_AUTH

nodes() { getent ahostsv4 redis | awk '{ print $1 }' | sort -u; }
ask() {
  asked=$1
  shift
  redis-cli -h "$asked" --user admin "$@"
}

follows() { # whether it has what its master has
  ask "$1" info replication | grep -q '^master_link_status:up'
}

until [ "$(nodes | wc -l)" = 6 ]; do sleep 0.5; done
first=$(nodes | head -n 1)
if ask "$first" cluster info | grep -q '^cluster_known_nodes:[2-9]'; then
  for node in $(nodes); do
    for other in $(nodes); do ask "$node" cluster meet "$other" 6379; done
  done
else
  # shellcheck disable=SC2046 # a word each
  redis-cli --user admin --cluster create $(nodes | sed 's/$/:6379/') --cluster-replicas 1 --cluster-yes
fi
# Without `cluster-require-full-coverage` a Cluster is "ok" before all of its slots are.
for node in $(nodes); do
  until ask "$node" cluster info | grep -q '^cluster_slots_ok:16384'; do sleep 0.2; done
done
# A replica that has its master's address by gossip goes on dialling the old one, until it is told whose replica it is.
for node in $(nodes); do
  while master=$(ask "$node" cluster nodes | awk '$3 ~ /myself/ && $3 ~ /slave/ { print $4 }') && [ -n "$master" ]; do
    if follows "$node"; then break; fi
    ask "$node" cluster replicate "$master" || true # refused while it does not know it yet
    for tries in 1 2 3 4 5 6 7 8 9 10; do
      if follows "$node"; then break; fi
      sleep 0.2
    done
  done
done
