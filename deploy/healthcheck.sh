# The health check of the image: exit status 0 if the replica in this container answers. It is in bash because starting
# Python for each check takes 4 to 5 % of a core. It reads the replica's settings from the environment, so set
# CONTROLLER_HOST, CONTROLLER_PORT and CONTROLLER_SSL there and not as flags.
set -u

host=${CONTROLLER_HOST:-localhost}
case $host in 0.0.0.0 | ::) host=localhost ;; esac # /etc/hosts has both loopback addresses
exec 3<>"/dev/tcp/$host/${CONTROLLER_PORT:-21001}" || exit 1
printf 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
line=
IFS= read -r -t 2 line <&3
outcome=$?

ssl=${CONTROLLER_SSL:-}
case ${ssl,,} in
  # bash has no TLS. A replica that serves HTTPS closes this connection, which shows that it runs. `read` returns more
  # than 128 if the replica does nothing for 2 s.
  1 | t | true | y | yes | on) [ $outcome -le 128 ] ;;
  *) [[ $line == "HTTP/1.1 200 "* ]] ;;
esac
