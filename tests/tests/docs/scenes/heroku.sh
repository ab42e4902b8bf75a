# An app `shop` on a Heroku of our own, which is examples/hello with a `bin/rails`; and an engine for it.
scene docker || return
mkdir -p /tmp/out/shop/app/bin && cp -r examples/hello/. /tmp/out/shop/app &&
    printf '#!/bin/sh\necho "Loading production environment"\n' >/tmp/out/shop/app/bin/rails &&
    chmod 755 /tmp/out/shop/app/bin/rails &&
    tar -C /tmp/out/shop -czf /tmp/out/shop.tgz ./app || return
test-heroku 127.0.0.1:8000 /tmp/out/shop.tgz 'web=exec perl web.pl' >/tmp/out/heroku.log 2>&1 &
export HEROKU_HOST=http://127.0.0.1:8000
becomes $! curl "$HEROKU_HOST" >/dev/null || { cat /tmp/out/heroku.log; return 1; }

# Stands in for Heroku's own command, which asks the real one.
heroku() {
    [ "$*" = 'authorizations:create --scope read-protected --short' ] && echo HRKU-hunter2-0123-4567
}
export -f heroku
