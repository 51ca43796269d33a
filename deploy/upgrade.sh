#!/bin/sh
# Replaces the replicas of a running cluster by new ones, of the image and the environment that are set now, one after the
# other: each new one is ready before an old one leaves, and nobody's request fails. `docker compose up` would replace all
# of them together. Takes the same files and options as docker compose does, and leaves all else as it is:
#
#   docker compose -f deploy/docker-compose.yml build controller
#   sh deploy/upgrade.sh -f deploy/docker-compose.yml
#
# If a new replica does not get ready within UPGRADE_TIMEOUT (120 s), it is removed, and the others stay.
set -eu

replicas() { docker compose "$@" ps --all --quiet controller | sort; }

is_ready() {
  docker exec "$1" python3 -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:21001/readyz', timeout=2)" \
    >/dev/null 2>&1
}

old=$(replicas "$@")
if [ -z "$old" ]; then
  echo "There are no replicas: docker compose up makes them." >&2
  exit 1
fi
number=$(echo "$old" | wc -l)
for leaving in $old; do
  before=$(replicas "$@")
  docker compose "$@" up --detach --no-recreate --scale "controller=$((number + 1))" controller
  new=$(replicas "$@" | grep -vF "$before")
  deadline=$(($(date +%s) + ${UPGRADE_TIMEOUT:-120}))
  until is_ready "$new"; do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      docker logs --tail 20 "$new" >&2
      docker rm --force "$new" >/dev/null
      echo "The new replica did not get ready; what it said is above. The others serve on." >&2
      exit 1
    fi
    sleep 0.5
  done
  docker stop "$leaving" >/dev/null # it takes up to stop_grace_period, for streams to end
  docker rm "$leaving" >/dev/null
done
