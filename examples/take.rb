#!/usr/bin/env ruby
# Takes a lock, works under it, renews it meanwhile, and releases it.
#
#     ruby take.rb MOUNT [NAME]

abort "usage: take.rb MOUNT [NAME]" unless [1, 2].include?(ARGV.size)
mount, name = ARGV
name ||= "example"
$stdout.sync = true

# The open waits in line. If a signal interrupts it: open again within a second and the place is kept.
def take(mount, name)
  File.read("#{mount}/take/#{name}+30s").chomp # closed unread, the lock would be released again
rescue Errno::EINTR
  retry
end

begin
  token = take(mount, name)
  lock = "#{mount}/tlock/#{name}@#{token}" # exists only as long as this very lock is held
  puts "took #{name}, token #{token}"
  1.upto(3) do |part|
    sleep 0.1 # in place of work: each part must take less than the timeout
    abort "take.rb: #{name} is no longer ours: stopping before harm is done" unless File.directory?(lock)
    File.open("#{lock}/timeout", "w") { |f| f.write("30s\n") }
    puts "part #{part} done, renewed"
  end
  Dir.rmdir(lock) # by token: never somebody else's
  puts "released #{name}"
rescue SystemCallError => e
  abort "take.rb: #{e.message}"
rescue Interrupt
  abort "take.rb: interrupted"
end
