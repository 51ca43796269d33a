#!/bin/sh
# Creates a Redis Cluster of the six containers with the network name `redis`. If the Cluster exists already, the script
# connects its nodes with each other, and each replica with its master. Their addresses may have changed since the last
# start.
set -eu
REDISCLI_AUTH=$(cat /run/controller/operator-password)
export REDISCLI_AUTH

nodes() { getent ahostsv4 redis | awk '{ print $1 }' | sort -u; }
call() { # calls the Redis at an address
  address=$1
  shift
  "${REDIS_PROGRAM:-redis}-cli" -h "$address" --user admin "$@"
}

is_replicating() { # succeeds if the replica is connected with its master
  call "$1" info replication | grep -q '^master_link_status:up'
}

until [ "$(nodes | wc -l)" = 6 ]; do sleep 0.5; done
first=$(nodes | head -n 1)
if call "$first" cluster info | grep -q '^cluster_known_nodes:[2-9]'; then
  for node in $(nodes); do
    for other in $(nodes); do call "$node" cluster meet "$other" 6379; done
  done
else
  # shellcheck disable=SC2046 # each address is an argument
  "${REDIS_PROGRAM:-redis}-cli" --user admin --cluster create $(nodes | sed 's/$/:6379/') --cluster-replicas 1 --cluster-yes
fi
# Without `cluster-require-full-coverage`, the state of a Cluster is "ok" before all of its slots are.
for node in $(nodes); do
  until call "$node" cluster info | grep -q '^cluster_slots_ok:16384'; do sleep 0.2; done
done
# A replica that learns the new address of its master by gossip still connects to the old one. CLUSTER REPLICATE makes
# it use the new address.
for node in $(nodes); do
  while master=$(call "$node" cluster nodes | awk '$3 ~ /myself/ && $3 ~ /slave/ { print $4 }') && [ -n "$master" ]; do
    if is_replicating "$node"; then break; fi
    call "$node" cluster replicate "$master" || true # fails until gossip has announced the master to the node
    for tries in 1 2 3 4 5 6 7 8 9 10; do
      if is_replicating "$node"; then break; fi
      sleep 0.2
    done
  done
done
