# A Docker engine that has the image of a stack: here it is imported, a reader's engine pulls it.
scene machine && { docker version >/dev/null 2>&1 || systemctl restart docker; } &&
    /tmp/out/stack /tmp/out/image | docker import - heroku/heroku:26 &&
    docker tag heroku/heroku:26 heroku/heroku:24
