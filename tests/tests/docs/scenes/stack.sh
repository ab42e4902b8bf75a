# A stack for dynos in containers.
scene machine && debootstrap bookworm /var/lib/hsup/stacks/debian-12
