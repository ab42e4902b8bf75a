#!/bin/bash
# A worker that works, and ends its round before it stops.
trap 'echo "finishing the last round"; exit 0' TERM
round=0
while true; do
    round=$((round + 1))
    echo "round $round done"
    # Interruptible: bash runs the trap only between commands.
    sleep 2 &
    wait $!
done
