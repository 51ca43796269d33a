#!/bin/sh
# Makes a Cluster of the six containers behind the name `redis`, unless they are one already.
set -eu
REDISCLI_AUTH=$(cat /run/controller/operator-password)
export REDISCLI_AUTH

nodes() { getent ahostsv4 redis | awk '{ print $1 }' | sort -u; }
ask() { redis-cli -h "$1" --user admin "$2" "$3"; }

until [ "$(nodes | wc -l)" = 6 ]; do sleep 0.5; done
first=$(nodes | head -n 1)
if ! ask "$first" cluster info | grep -q cluster_state:ok; then
  # shellcheck disable=SC2046 # a word each
  redis-cli --user admin --cluster create $(nodes | sed 's/$/:6379/') --cluster-replicas 1 --cluster-yes
fi
for node in $(nodes); do
  until ask "$node" cluster info | grep -q cluster_state:ok; do sleep 0.2; done
done
