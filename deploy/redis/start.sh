#!/bin/sh
# Starts Redis for the controllers: with a password that is drawn at the first start and stays in a volume, and one
# user who may do what the scripts do, on the keys of one namespace, and nothing else.
set -eu
SECRET=/run/controller # shared with the controllers, who only read it
DATA=/data

umask 077
if [ ! -s "$SECRET/password" ]; then
  head -c 32 /dev/urandom | base64 | tr -d '/+=\n' >"$SECRET/password.new"
  mv "$SECRET/password.new" "$SECRET/password"
fi
chgrp -R 10001 "$SECRET" # the controllers' group
chmod 750 "$SECRET"
chmod 640 "$SECRET/password"

{
  sed "s|>PASSWORD|>$(cat "$SECRET/password")|" /etc/redis-controller/users.acl
} >/tmp/users.acl
chown redis: "$DATA" /tmp/users.acl
find "$DATA" ! -user redis -exec chown redis: {} +

exec setpriv --reuid=redis --regid=redis --clear-groups \
  redis-server /etc/redis-controller/redis.conf "$@"
