#!/bin/sh
# Makes a Cluster of the six containers behind the name `redis`. If they are one already, sees to it that they find each
# other: their addresses may be others than at the last start.
set -eu
REDISCLI_AUTH=$(cat /run/controller/operator-password)
export REDISCLI_AUTH

nodes() { getent ahostsv4 redis | awk '{ print $1 }' | sort -u; }
ask() {
  node=$1
  shift
  redis-cli -h "$node" --user admin "$@"
}

until [ "$(nodes | wc -l)" = 6 ]; do sleep 0.5; done
first=$(nodes | head -n 1)
if ask "$first" cluster info | grep -q '^cluster_known_nodes:[2-9]'; then
  for node in $(nodes); do ask "$first" cluster meet "$node" 6379; done
else
  # shellcheck disable=SC2046 # a word each
  redis-cli --user admin --cluster create $(nodes | sed 's/$/:6379/') --cluster-replicas 1 --cluster-yes
fi
for node in $(nodes); do
  until ask "$node" cluster info | grep -q cluster_state:ok; do sleep 0.2; done
done
