# A Swarm and a registry, by the commands that docs/swarm.md has for that, as they stand there; and the
# image of a stack.
scene machine || return
commands=$(sed -n '/^```console$/,/^```$/ { /^```$/q; s/^# //p }' /tmp/out/swarm.md)
[ -n "$commands" ] || return
while IFS= read -r command; do
    eval "$command" || return
done <<<"$commands"
scene docker
