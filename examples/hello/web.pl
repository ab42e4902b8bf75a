#!/usr/bin/perl
# A web server that needs nothing beyond Debian's perl-base: one page, one log line a request.
use strict;
use warnings;
use IO::Socket::INET;

$| = 1;
my $port     = $ENV{PORT}     // 5000;
my $dyno     = $ENV{DYNO}     // 'nobody';
my $greeting = $ENV{GREETING} // 'Hello';

# At every address, as on Heroku: in a container the loopback is the dyno's own.
my $server = IO::Socket::INET->new(
    LocalPort => $port,
    Listen    => 64,
    ReuseAddr => 1,
) or die "cannot listen on port $port: $!\n";

$SIG{TERM} = sub { print "bye\n"; exit 0 };
$SIG{PIPE} = 'IGNORE';
print "listening on port $port\n";

while (1) {
    my $client = $server->accept or next;
    my $request = <$client> // '';
    my ($method, $path) = $request =~ m{^(\S+) (\S+)};
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?\n$/ }
    my $body = "$greeting, this is $dyno\n";
    print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n",
        'Content-Length: ', length $body, "\r\nConnection: close\r\n\r\n", $body;
    close $client;
    # A connection without a request is somebody who looks whether we listen.
    printf "%s %s\n", $method, $path if defined $method;
}
