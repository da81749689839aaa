# The lock protocol of Perl's Sys::Tlock, from its description: a lock is the directory MARKER.LABEL with a
# subdirectory d; the mtime of the first is its token, that of d its duration, both in whole seconds; changes are made
# under the master lock MARKER_.LABEL. Like the module, it does not look at what mkdir, chown and utime return.
#
#     perl tlock.pl DIR MARKER PATIENCE COMMAND [ARGUMENT]...
use strict;
use warnings;
use Time::HiRes qw(sleep);

my ($dir, $marker, $patience, $command, @args) = @ARGV;
my $owner = $ENV{TLOCK_OWNER} // -1;
$| = 1;

sub lock_of   { "$dir/$marker.$_[0]" }
sub master_of { "$dir/${marker}_.$_[0]" }

# pause stops a script at a point that a test is about: it says where and waits for a line.
sub pause {
    my ($where) = @_;
    return if ($ENV{TLOCK_PAUSE} // '') ne $where;
    print "$where\n";
    <STDIN>;
}

sub take_master {
    my ($label) = @_;
    my $since = Time::HiRes::time();
    until (mkdir master_of($label)) {
        return 0 if Time::HiRes::time() - $since > $patience;
        sleep 0.05;
    }
    pause('master');
    return 1;
}

sub mtime { (stat $_[0])[9] }

sub expiry {
    my ($label) = @_;
    my ($start, $duration) = (mtime(lock_of($label)), mtime(lock_of($label) . '/d'));
    return defined $start && defined $duration ? $start + $duration : undef;
}

sub taken { my $end = expiry($_[0]); defined $end && $end >= time }

sub alive { my ($label, $token) = @_; taken($label) && mtime(lock_of($label)) == $token }

sub take {
    my ($label, $timeout) = @_;
    return unless take_master($label);
    my $token;
    if (!taken($label)) {
        my $lock = lock_of($label);
        pause('tested');
        for my $path ($lock, "$lock/d") {
            mkdir $path unless -e $path;
            chown $owner, -1, $path;
        }
        $token = time;
        utime 0, $token, $lock;
        utime 0, $timeout, "$lock/d";
    }
    rmdir master_of($label);
    return $token;
}

sub renew {
    my ($label, $token, $timeout) = @_;
    return unless take_master($label);
    my $ok = alive($label, $token);
    utime 0, time - $token + $timeout, lock_of($label) . '/d' if $ok;
    rmdir master_of($label);
    return $ok;
}

sub remove {
    my ($label) = @_;
    rmdir lock_of($label) . '/d';
    return rmdir lock_of($label);
}

sub release {
    my ($label, $token) = @_;
    return unless take_master($label);
    my $ok = alive($label, $token) && remove($label);
    rmdir master_of($label);
    return $ok;
}

sub release_careless {
    my ($label) = @_;
    return unless take_master($label);
    my $ok = remove($label);
    rmdir master_of($label);
    return $ok;
}

sub zing {
    for my $path (glob "$dir/*") {
        my ($label) = $path =~ m{/\Q$marker\E\.([^/]+)$} or next;
        next if taken($label) || !take_master($label);
        remove($label) unless taken($label);
        rmdir master_of($label);
    }
    return 1;
}

# contend takes and releases a lock so many times among others, and makes a file exclusively while it has it.
sub contend {
    my ($label, $times, $file) = @_;
    use Fcntl;
    for (1 .. $times) {
        my $token;
        until ($token = take($label, 60)) { sleep 0.01 }
        sysopen my $alone, $file, O_CREAT | O_EXCL | O_WRONLY or die "not alone: $!\n";
        sleep 0.002;
        unlink $file;
        release($label, $token) or die "lost the lock\n";
    }
    return 1;
}

my %commands = (
    take => \&take, renew => \&renew, release => \&release, alive => \&alive, taken => \&taken, expiry => \&expiry,
    tstart => sub { mtime(lock_of($_[0])) }, zing => \&zing, release_careless => \&release_careless,
    contend => \&contend, master => \&take_master,
);
my $result = $commands{$command}->(@args);
print "$result\n" if $result;
exit($result ? 0 : 1);
