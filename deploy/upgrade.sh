#!/bin/sh
# Rolling upgrade: replaces the replicas of a running cluster one by one, with the current image and environment. Each
# new replica is ready before an old one is stopped, so no request fails. `docker compose up` would replace all replicas
# at the same time. The script takes the files and options of docker compose, and changes no other service:
#
#   docker compose -f deploy/docker-compose.yml build controller
#   sh deploy/upgrade.sh -f deploy/docker-compose.yml
#
# If a new replica is not ready within UPGRADE_TIMEOUT (120 s), the script removes it and stops. The others keep
# serving. Variables such as CONTROLLER_TOKENS_FILE must be set as at the first start: keep them in deploy/.env.
set -eu

replicas() { docker compose "$@" ps --all --quiet controller | sort; }

is_ready() {
  docker exec "$1" python3 -c "from urllib.request import urlopen; urlopen('http://127.0.0.1:21001/readyz', timeout=2)" \
    >/dev/null 2>&1
}

has_access_control() { # reads the environment of a replica, or a configuration
  grep -qE '^ *CONTROLLER_(TOKENS_FILE|(WORKER|CLIENT|ADMIN)_(TOKENS|NETWORKS))(=|: ).*[^ "]'
}

old=$(replicas "$@")
if [ -z "$old" ]; then
  echo "There are no replicas to upgrade. Start them with docker compose up." >&2
  exit 1
fi
if docker inspect --format '{{range .Config.Env}}{{println .}}{{end}}' $old | has_access_control &&
  ! docker compose "$@" config | has_access_control; then
  echo "The replicas need tokens or networks, and the new ones would need none, so nothing was replaced. Set the variables" \
    "of the first start, such as CONTROLLER_TOKENS_FILE, or write them into deploy/.env. To open the controller on" \
    "purpose, use docker compose up." >&2
  exit 1
fi
number=$(echo "$old" | wc -l)
for replica in $old; do
  before=$(replicas "$@")
  docker compose "$@" up --detach --no-recreate --scale "controller=$((number + 1))" controller
  new=$(replicas "$@" | grep -vF "$before") || {
    echo "docker compose created no new replica, so nothing was replaced. The replicas serve as before." >&2
    exit 1
  }
  deadline=$(($(date +%s) + ${UPGRADE_TIMEOUT:-120}))
  until is_ready "$new"; do
    if [ "$(date +%s)" -ge "$deadline" ]; then
      docker logs --tail 20 "$new" >&2
      docker rm --force "$new" >/dev/null
      echo "The new replica did not become ready and was removed. Its log is above. The others serve." >&2
      exit 1
    fi
    sleep 0.5
  done
  docker stop "$replica" >/dev/null # takes up to stop_grace_period, while streams end
  docker rm "$replica" >/dev/null
done
