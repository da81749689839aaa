#!/usr/bin/perl
# Takes a lock, works under it, renews it meanwhile, and releases it.
#
#     perl take.pl MOUNT [NAME]
use strict;
use warnings;

sub fail { print STDERR "take.pl: @_\n"; exit 1 }

my ($mount, $name) = @ARGV;
defined $mount or fail('usage: take.pl MOUNT [NAME]');
$name //= 'example';
$| = 1;

# The open waits in line. A signal with a handler interrupts it: open again within a second and the place is kept.
sub take {
    my $path = "$mount/take/$name+30s";
    my $file;
    until (open $file, '<', $path) {
        $!{EINTR} or fail("$path: $!");
    }
    my $token = <$file> // fail("$path: $!"); # closed unread, the lock would be released again
    chomp $token;
    return $token;
}

my $token = take();
my $lock  = "$mount/tlock/$name\@$token";    # exists only as long as this very lock is held
print "took $name, token $token\n";

sub renew {
    open my $file, '>', "$lock/timeout" or fail("$name ended before it was renewed: $!");
    print {$file} "30s\n";
    close $file or fail("cannot renew $name: $!");
}

for my $part (1 .. 3) {
    select undef, undef, undef, 0.1;         # in place of work: each part must take less than the timeout
    -d $lock or fail("$name is no longer ours: stopping before harm is done");
    renew();
    print "part $part done, renewed\n";
}

rmdir $lock or fail("cannot release $name: $!");    # by token: never somebody else's
print "released $name\n";
